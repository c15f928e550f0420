"""The model card of an exported run: what it is for, what it was trained on, what it came to, and what limits it."""

from pathlib import Path

from fbjax import __version__
from fbjax.config.schema import Config
from fbjax.evaluation import metrics
from fbjax.export.source_model import SourceModel
from fbjax.runs.run import Run
from fbjax.runs.stored_evaluation import read_evaluation

SHOWN = (
    "num_layers",
    "width",
    "num_heads",
    "mlp_dim",
    "text_tokens",
    "network",
    "geometry",
    "image_size",
    "patch_size",
)
HIDDEN = ("pretrained", "vocabulary", "weights", "attention", "remat", "text_bucket", "cached")
READS = {"tia": "whether a text and an image match", "itc": "vectors of texts, images and products, for a search index"}
READS |= {"mlm": "hidden text pieces", "mpm": "hidden patches"}


def model_card(subject: SourceModel) -> str:
    """README.md of a Hugging Face folder; paths of the machine that trained are left out, but for files' names."""
    run = subject.run
    sections = {
        "FashionBERT": _summary(subject),
        "Use": _use(run),
        "Data": _data(run),
        "Configuration": _configuration(run),
        "Figures": _figures(subject),
        "Intended use": _intended(run),
        "Limits": _limits(run),
        "Licences": _licences(run),
    }
    body = "\n\n".join(f"{'##' if i else '#'} {title}\n\n{text}" for i, (title, text) in enumerate(sections.items()))
    return f"---\nlibrary_name: transformers\ntags:\n- fashionbert\n- image-text-matching\n---\n\n{body}\n"


def _summary(subject: SourceModel) -> str:
    tasks = ", ".join(f"{READS[name]} (`{name}`)" for name in subject.run.config.tasks.names)
    return (
        "[FashionBERT](https://arxiv.org/abs/2005.09801) in PyTorch: the patches of a product's image stand as tokens "
        f"beside the words of its text, and one BERT reads both. Trained with fbjax {__version__}, checkpoint "
        f"{subject.step:,}, for: {tasks}."
    )


def _use(run: Run) -> str:
    config, size = run.config, run.config.patches.image_size
    lines = [
        "import torch",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        "model = AutoModel.from_pretrained(DIR, trust_remote_code=True).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(DIR, trust_remote_code=True)",
        'ids = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids',
    ]
    pixels = f"images: uint8 [B, {size}, {size}, 3], RGB, each resized without keeping its aspect ratio"
    source = "features" if config.patches.ready_made else "images"
    if config.patches.ready_made:
        pixels = f"features: float32 [B, {run.patches.num_patches}, {run.patches.feature_size}], made elsewhere"
    lines += [f"# {pixels}", "with torch.inference_mode():"]
    if "tia" in config.tasks.names:
        lines.append(f"    score, logits = model.match(ids, {source}={source})  # score > 0: a match is likelier")
    if "itc" in config.tasks.names:
        lines.append(f"    cosines = model.embed_text(ids) @ model.embed_image({source}={source}).T")
    lines.append(f"    everything = model(ids, {source}={source})  # the logits of every head, and hidden states")
    text = "`BertModel.from_pretrained(DIR)` gives the text backbone alone."
    return "\n".join(["```python", *lines, "```", "", text])


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
    """The sizes, and whatever else is not as fbjax leaves it."""
    defaults, rows = Config(), []
    for section in ("model", "patches", "tasks"):
        for name, value in vars(getattr(run.config, section)).items():
            if name in SHOWN or (name not in HIDDEN and value != getattr(getattr(defaults, section), name)):
                rows.append(f"| `{section}.{name}` | {', '.join(value) if isinstance(value, tuple) else value} |")
    train = run.config.train
    rows.append(
        f"| training | {train.num_steps:,} steps of {train.batch_size}, learning rate {train.learning_rate:g} |"
    )
    rows.append(f"| image tokens | {run.patches.num_patches} of {run.patches.feature_size} numbers |")
    return "\n".join(["| | |", "|---|---|", *rows])


def _figures(subject: SourceModel) -> str:
    stored = read_evaluation(subject.workdir)
    figures = stored["figures"] if stored else {}
    if figures.get("checkpoint_step") != subject.step:
        return (
            "This checkpoint has not been evaluated: `fbjax evaluate --workdir W` before the export puts figures here."
        )
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
    if "tia" in run.config.tasks.names:
        uses.append("telling whether a product text and an image belong together, ordering candidates")
    if "itc" in run.config.tasks.names:
        uses.append("searching a catalogue by vectors")
    return f"On catalogues like the one it was trained on: {'; '.join(uses)}. A start for training on others."


def _limits(run: Run) -> str:
    return (
        "It knows the language, products and photographs of its catalogue; others have to be evaluated first. Texts "
        f"past {run.config.model.text_tokens} pieces are cut, and images are seen at "
        f"{run.config.patches.image_size} x {run.config.patches.image_size} pixels. Scores order candidates; they are "
        "no probabilities, and a catalogue's habits and biases are in them. It is not made to judge people."
    )


def _licences(run: Run) -> str:
    patches, model = run.config.patches, run.config.model
    lines = [
        "The code is under Apache-2.0. What the weights were made from keeps its own terms, which stand elsewhere:"
    ]
    if run.patches.params:
        made = "trained further from" if patches.trainable else "those of"
        lines.append(
            f"* the patch network's weights (`patches.*`, {patches.network}) are {made} {_file(patches.weights)}, "
            "whose licence goes with them: check it before you pass this folder on;"
        )
    if model.pretrained:
        lines.append(f"* the encoder started from `{Path(model.pretrained).name}`;")
    lines.append("* the catalogue's texts and photographs belong to their owners.")
    return "\n".join([lines[0], "", *lines[1:]])
