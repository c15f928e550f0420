"""The model card of an exported run: use, data, configuration, figures and limits."""

from pathlib import Path

from fbjax import __version__
from fbjax.config.schema import Config
from fbjax.evaluation import metrics
from fbjax.export.source_model import SourceModel
from fbjax.runs.run import Run
from fbjax.runs.stored_evaluation import read_evaluation

SHOWN = ("num_layers", "width", "num_heads", "mlp_dim", "text_tokens")
SHOWN += ("network", "geometry", "image_size", "fit", "patch_size")
FITTED = {
    "squash": "without keeping its aspect ratio",
    "pad": "so that its longer side is that long, in the middle of a white square",
    "crop": "from the square in its middle",
    "foreground": 'from its foreground\'s box by fbjax.data.sources.images.read_pixels(image, size, "foreground")',
}
HIDDEN = ("pretrained", "vocabulary", "weights", "attention", "remat", "text_bucket", "mode")


LIMITS = (
    "It knows the language, products and photographs of its catalogue; evaluate it on others first. Texts are cut to "
    "{tokens} pieces, images are scaled to {size} x {size} pixels. Scores order candidates; they are no probabilities, "
    "and contain a catalogue's habits and biases. It is not made to judge people."
)


def model_card(source_model: SourceModel) -> str:
    """README.md of a Hugging Face folder; it names files without their folders."""
    run = source_model.run
    sections = {
        "FashionBERT": _summary(source_model),
        "Use": _use(source_model),
        "Data": _data(run),
        "Configuration": _configuration(run),
        "Figures": _figures(source_model),
        "Intended use": _intended(run),
        "Limits": LIMITS.format(tokens=run.config.model.text_tokens, size=run.config.patches.image_size),
        "Licences": _licences(source_model),
    }
    body = "\n\n".join(f"{'##' if i else '#'} {title}\n\n{text}" for i, (title, text) in enumerate(sections.items()))
    return f"---\nlibrary_name: transformers\ntags:\n- fashionbert\n- image-text-matching\n---\n\n{body}\n"


def _summary(source_model: SourceModel) -> str:
    tasks = ", ".join(f"{task.about.predicts} (`{name}`)" for name, task in source_model.run.config.tasks.items())
    return (
        "[FashionBERT](https://arxiv.org/abs/2005.09801) in PyTorch: one BERT reads the words of a product's text and "
        f"the patches of its image as tokens. Trained with fbjax {__version__}, checkpoint {source_model.step:,}, for: "
        f"{tasks}."
    )


def _use(source_model: SourceModel) -> str:
    run, size = source_model.run, source_model.run.config.patches.image_size
    lines = [
        "import torch",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        "model = AutoModel.from_pretrained(DIR, trust_remote_code=True).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(DIR, trust_remote_code=True)",
        'ids = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids',
    ]
    pixels = f"images: uint8 [B, {size}, {size}, 3], RGB, each resized {FITTED[run.config.patches.fit]}"
    source = "images" if "features" in source_model.functions else "features"
    if source == "features":
        pixels = f"features: float32 [B, {run.patches.num_patches}, {run.patches.feature_size}], made elsewhere"
    lines += [f"# {pixels}", "with torch.inference_mode():"]
    if run.scores_pairs:
        lines.append(f"    score, logits = model.match(ids, {source}={source})  # score > 0: a match is likelier")
    if run.has_embedder:
        lines.append(f"    cosines = model.embed_text(ids) @ model.embed_image({source}={source}).T")
    lines.append(f"    everything = model(ids, {source}={source})  # the logits of every head, and hidden states")
    return "\n".join(
        ["```python", *lines, "```", "", "`BertModel.from_pretrained(DIR)` gives the text backbone alone."]
    )


def _data(run: Run) -> str:
    data = run.config.data
    split = f"validated on {_file(data.validation)}" if data.validation else f"{data.holdout:.0%} held out to validate"
    columns = " + ".join(f"`{name}`" for name in data.columns.text)
    lines = [f"Trained on {_file(data.train)}, {split}: text from {columns}, category from `{data.columns.category}`."]
    lines.append(f"A vocabulary of {run.vocabulary.size:,} pieces; texts are cut to {run.config.model.text_tokens}.")
    if run.config.model.pretrained:
        lines.append(f"The encoder started from the BERT `{Path(run.config.model.pretrained).name}`.")
    return " ".join(lines)


def _file(path: str) -> str:
    return f"`{path if ':' in path and '/' not in path else Path(path).name}`"


def _configuration(run: Run) -> str:
    """A table of the sizes, and of every other setting that differs from its default."""
    defaults, rows = Config(), []
    for section in ("model", "patches"):
        for name, value in vars(getattr(run.config, section)).items():
            if name in SHOWN or (name not in HIDDEN and value != getattr(getattr(defaults, section), name)):
                rows.append(f"| `{section}.{name}` | {value} |")
    for task in run.config.tasks.values():
        rows += [f"| `tasks.{task.name}.{name}` | {value} |" for name, value in vars(task).items()]
    train, patches = run.config.train, run.patches
    training = f"{train.num_steps:,} steps of {train.batch_size}, learning rate {train.learning_rate:g}"
    if lora := run.config.lora.layers:
        training += f", of factors of rank {run.config.lora.rank} (LoRA) of {', '.join(lora)}, which are merged"
    tokens = f"{patches.num_patches} of {patches.feature_size} numbers"
    return "\n".join(["| | |", "|---|---|", *rows, f"| training | {training} |", f"| image tokens | {tokens} |"])


def _figures(source_model: SourceModel) -> str:
    stored = read_evaluation(source_model.workdir)
    figures = stored["figures"] if stored else {}
    if figures.get("checkpoint_step") != source_model.step:
        return "This checkpoint has not been evaluated: run `fbjax evaluate --workdir W` before the export for figures."
    lines = [
        f"* {direction.replace('_', ' ')}: {metrics.spoken(figures[direction])}"
        for direction in ("image_to_text", "text_to_image")
        if direction in figures
    ]
    if "matching" in figures:
        auc, (low, high) = figures["matching"]["auc"], figures["matching"]["auc.ci"]
        lines.append(f"* matching: AUC {auc:.3f} [{low:.3f}, {high:.3f}] against images of the same category")
    about = ""
    if "num_queries" in figures:
        about = (
            f"{figures['num_queries']:,} queries a direction, {figures['candidates_per_list']:.0f} candidates a list "
            f"(SHA-256 {figures['candidates_sha256'][:12]}), 95 % bootstrap intervals over queries:\n\n"
        )
    return about + "\n".join(lines)


def _intended(run: Run) -> str:
    uses = []
    if run.scores_pairs:
        uses.append("telling whether a product text and an image belong together, ordering candidates")
    if run.has_embedder:
        uses.append("searching a catalogue by vectors")
    return f"On catalogues like the one it was trained on: {'; '.join(uses)}. A start for training on others."


def _licences(source_model: SourceModel) -> str:
    patches, model = source_model.run.config.patches, source_model.run.config.model
    lines = []
    if source_model.params["patches"]:
        made = "trained further from" if patches.mode == "trained" else "those of"
        lines.append(
            f"* the patch network's weights (`patches.*`, {patches.network}) are {made} {_file(patches.weights)}, "
            "and keep its licence: check it before you pass this folder on;"
        )
    if model.pretrained:
        lines.append(f"* the encoder started from `{Path(model.pretrained).name}`;")
    lines.append("* the catalogue's texts and photographs belong to their owners.")
    return "\n".join(["The code is under Apache-2.0. The sources of the weights have their own licences:", "", *lines])
