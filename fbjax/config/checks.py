"""What a config must fulfil as a whole before long work starts: ranges, then settings that contradict one another."""

from fbjax.config.schema import LINEAR_LAYERS, TASKS, Config
from fbjax.config.settings import problems
from fbjax.core.registry import meant


def contradictions(config: Config) -> list[str]:
    """What is out of range or contradicts what, each with its values and the remedy. Each task checks itself."""
    if found := out_of_range(config):  # what follows computes with these values
        return found
    sections = (_data, _several_images, _log, _patches, _scales, _model, _rivals, _training, _lora)
    found = [message for rules in sections for broken, message in rules(config) if broken]
    return found + [problem for task in config.tasks.values() for problem in task.check(config)]


def out_of_range(config: Config) -> list[str]:
    """What has a value that its setting does not allow, each with the value and what is allowed."""
    plain = ("data", "log", "patches", "model", "adaptive", "train", "lora", "mesh")
    sections = {name: getattr(config, name) for name in plain}
    sections |= {"data.columns": config.data.columns, "patches.augment": config.patches.augment}
    sections |= {f"tasks.{name}": task for name, task in config.tasks.items()}
    sections |= {f"groups.{name}": group for name, group in config.groups.items()}
    return [problem for prefix, section in sections.items() for problem in problems(section, prefix)]


def _data(config: Config) -> list[tuple]:
    data, patches = config.data, config.patches
    return [
        (
            not data.columns.text or not all(data.columns.text),
            f"data.columns.text {data.columns.text} must name at least one column",
        ),
        (
            not data.validation and not 0 < data.holdout < 1,
            f"data.holdout {data.holdout} must lie in (0, 1) where there is no validation table",
        ),
        (
            not data.num_patches == data.feature_size == 0 and min(data.num_patches, data.feature_size) < 1,
            f"data.num_patches {data.num_patches} and data.feature_size {data.feature_size} must both be 0, or both be "
            "at least 1",
        ),
        (
            data.feature_size and (patches.mode != "cached" or patches.whole_image),
            f"data.feature_size {data.feature_size} needs patches.mode 'cached' and patches.whole_image false: there "
            "is no image",
        ),
        (
            data.on_device and not data.arrays and patches.mode != "cached",
            "data.on_device true needs data.arrays, or patches.mode 'cached': pictures in records are encoded",
        ),
    ]


def _several_images(config: Config) -> list[tuple]:
    data, named = config.data, f"data.max_images {config.data.max_images}"
    if data.max_images == 1:
        return [
            (
                data.columns.more_images,
                f"data.columns.more_images {data.columns.more_images} are a product's further pictures, and data."
                "max_images 1 reads one (raise it)",
            )
        ]
    others = [name for name, task in config.tasks.items() if not task.several_images]
    return [
        (
            not all(data.columns.more_images),
            f"data.columns.more_images {data.columns.more_images} must be names of columns",
        ),
        (
            config.patches.mode != "cached",
            f"{named} needs patches.mode 'cached', not {config.patches.mode!r}: features of all pictures are kept",
        ),
        (data.source != "tables", f"{named} is for data.source 'tables', not {data.source!r} (leave it at 1)"),
        (data.arrays, f"{named} needs records: data.arrays {data.arrays!r} hold one picture of a product (leave one)"),
        (
            config.model.architecture != "fashionbert",
            f"{named} is for model.architecture 'fashionbert', not {config.model.architecture!r} (leave it at 1)",
        ),
        (others, f"{named}: task {', '.join(others)} reads one picture of a product (leave it at 1)"),
        (config.train.guided_masks, f"{named}: train.guided_masks is of one picture of a product (leave one)"),
        (
            any(task.reads_apart == "dual" for task in config.tasks.values()),
            f"{named}: branches 'dual' read one picture of a product (leave it at 1)",
        ),
    ]


def _log(config: Config) -> list[tuple]:
    log = config.log
    readers = {
        "queries": [name for name, task in config.tasks.items() if task.reads_queries],
        "pairs of products": [name for name, task in config.tasks.items() if task.reads_partners],
    }
    has = "pairs of products" if log.has_pairs else "queries"
    missing = [what for what, names in readers.items() if names and (not log.table or what != has)]
    named = ", ".join(name for what in missing for name in readers[what])
    return [
        (
            missing,
            f"log.table {log.table!r} has no {' and no '.join(missing)}, which task {named} reads (name a table in "
            "log.table; log.other makes its events pairs of products, and so does the table 'groups')",
        ),
        (not log.query or not all(log.query), f"log.query {log.query} must name at least one column"),
        (
            log.table and log.query_tokens > config.model.text_tokens,
            f"log.query_tokens {log.query_tokens} must be at most model.text_tokens {config.model.text_tokens}",
        ),
    ]


def _patches(config: Config) -> list[tuple]:
    patches = config.patches
    untrue = [name for name, task in config.tasks.items() if not task.augmentable]
    return [
        (
            patches.augment.is_on and patches.mode == "cached",
            "patches.augment changes pictures in every step, and patches.mode 'cached' computes their features once "
            "(use mode 'frozen' or 'trained')",
        ),
        (
            patches.augment.is_on and untrue,
            f"patches.augment would make the targets of task {', '.join(untrue)} untrue (leave it off)",
        ),
        (
            patches.image_size % patches.patch_size,
            f"patches.patch_size {patches.patch_size} does not divide image_size {patches.image_size}",
        ),
        (
            patches.whole_image
            and (patches.network, patches.geometry) == ("pixels", "per_patch")
            and patches.image_size % patches.patch_input_size,
            f"patches.whole_image: patches.patch_input_size {patches.patch_input_size} does not divide image_size "
            f"{patches.image_size}, which 'pixels' cuts into cells of that size",
        ),
        *(
            (
                patches.mode != "trained" and value != default,
                f"patches.{name} {value!r} is for patches.mode 'trained', not {patches.mode!r} (use {default!r})",
            )
            for name, value, default in (
                ("frozen_blocks", patches.frozen_blocks, 0),
                ("dtype", patches.dtype, "float32"),
                ("remat", patches.remat, False),
            )
        ),
    ]


def _scales(config: Config) -> list[tuple]:
    patches, named = config.patches, f"patches.scales {config.patches.scales}"
    if patches.variants and not {1, 4} <= {*patches.scales}:
        return [(True, f"{named} lacks scale 1 or 4, of which patches.variants are (add it, or set variants to false)")]
    if not patches.scales:
        return []
    apart = [name for name, task in config.tasks.items() if task.reads_apart or task.late_interaction]
    return [
        (
            patches.variants and apart,
            f"patches.variants is for tasks that the encoder reads images for, and {', '.join(apart)} reads their "
            "features itself (set it to false)",
        ),
        (
            patches.scales != tuple(sorted({*patches.scales})) or patches.scales[0] < 1,
            f"{named} must rise from 1 or more, each once, as in (1, 2, 3, 4, 5)",
        ),
        (
            patches.geometry != "feature_map",
            f"{named} averages cells of one map: set patches.geometry to 'feature_map', not {patches.geometry!r}",
        ),
        (patches.whole_image, f"{named} takes no patches.whole_image: scale 1 is the whole image (leave it off)"),
        (
            config.data.feature_size,
            f"{named} is of images, and data.feature_size {config.data.feature_size} says that "
            "the source gives features (set it to 0)",
        ),
    ]


def _model(config: Config) -> list[tuple]:
    model = config.model
    return [
        (model.width % model.num_heads, f"model.num_heads {model.num_heads} does not divide model.width {model.width}"),
        (
            model.vocabulary in ("", "used") and not model.pretrained,
            f"model.vocabulary {model.vocabulary!r} names none, and there is no pretrained BERT to take it from "
            "(use a path to vocab.txt, or 'train:8000' to train one on the catalogue)",
        ),
        (
            model.attention == "cudnn"
            and (model.dtype != "bfloat16" or model.attention_dropout or model.width // model.num_heads % 8),
            f"model.attention 'cudnn' needs dtype 'bfloat16', attention_dropout 0 and a multiple of 8 for width / "
            f"num_heads, not {model.dtype!r}, {model.attention_dropout} and {model.width / model.num_heads:g}",
        ),
        (
            model.attention == "cudnn" and model.cross_attention == "gated",
            "model.attention 'cudnn' takes no cross_attention 'gated' (use attention 'xla')",
        ),
    ]


def _rivals(config: Config) -> list[tuple]:
    """Of the architectures other than FashionBERT's."""
    model, train = config.model, config.train
    named, is_vilbert = f"model.architecture {model.architecture!r}", model.architecture == "vilbert"
    default = type(model)().co_attention_blocks
    return [
        (
            (model.architecture == "kaleido") != bool(config.patches.scales),
            f"{named} with patches.scales {config.patches.scales}: 'kaleido' reads patches of several scales, and no "
            "other does (set both, or leave both)",
        ),
        (
            model.architecture in ("vilbert", "vlbert") and not config.patches.whole_image,
            f"{named} reads the token of the whole image: set patches.whole_image to true",
        ),
        (
            is_vilbert and model.co_attention_blocks > model.num_layers,
            f"model.co_attention_blocks {model.co_attention_blocks} is above model.num_layers {model.num_layers}: each "
            "block is followed by a layer of the text (lower it)",
        ),
        (
            not is_vilbert and model.co_attention_blocks != default,
            f"model.co_attention_blocks {model.co_attention_blocks} is for model.architecture 'vilbert', not "
            f"{model.architecture!r} (use {default})",
        ),
        (
            is_vilbert and model.cross_attention == "gated",
            f"{named} takes no cross_attention 'gated', which is for one stream (use 'joint')",
        ),
        (
            is_vilbert and train.layer_decay < 1,
            f"{named} takes no train.layer_decay {train.layer_decay}, which counts the layers of one stream (use 1)",
        ),
    ]


def _training(config: Config) -> list[tuple]:
    adaptive, train, tasks = config.adaptive, config.train, config.tasks
    pairing = [name for name, task in TASKS.items() if _matches(task)]
    return [
        (not tasks, f"tasks is empty: name one or more of {', '.join(TASKS)}"),
        (
            tasks and not any(map(_matches, tasks.values())),
            f"tasks {', '.join(tasks)} do not learn which text and image match: add {' or '.join(pairing)}",
        ),
        (
            train.batch_size % train.micro_batches,
            f"train.micro_batches {train.micro_batches} does not divide batch_size {train.batch_size}",
        ),
        (
            train.warmup_steps >= train.num_steps,
            f"train.warmup_steps {train.warmup_steps} must be below num_steps {train.num_steps} (lower it as well)",
        ),
        (
            train.column_dropout and len(config.data.columns.text) < 2,
            f"train.column_dropout {train.column_dropout} needs more than one column in data.columns.text, not "
            f"{config.data.columns.text} (name others, or set it to 0)",
        ),
        (
            train.guided_masks and not {"text", "image"} <= {task.guided for task in tasks.values()},
            f"train.guided_masks {train.guided_masks} hides words or the patches that they go to, and tasks "
            f"{', '.join(tasks)} do not hide both (add mlm, and mpm or Kaleido-BERT's picture tasks)",
        ),
        (
            train.guided_masks and train.column_dropout,
            f"train.guided_masks knows the words of whole texts, and train.column_dropout {train.column_dropout} reads "
            "some as a column alone (set it to 0)",
        ),
        (
            train.guided_masks and config.patches.scales and max(config.patches.scales) < 3,
            f"train.guided_masks is of scales from 3, and patches.scales {config.patches.scales} has none (add one)",
        ),
        (
            adaptive.every > 1 and adaptive.method != "gradient",
            f"adaptive.every {adaptive.every} is for method 'gradient', not {adaptive.method!r} (leave it at 1)",
        ),
        (
            adaptive.method == "fixed" and tasks and sum(task.weight for task in tasks.values()) <= 0,
            "adaptive.method 'fixed' needs a task whose weight is above 0",
        ),
    ]


def _matches(task) -> bool:
    """Whether a task, or its class, learns which text and image match."""
    return task.scores_pairs or task.late_interaction or task.embeds


def _lora(config: Config) -> list[tuple]:
    lora, width = config.lora, config.model.width
    unknown = [name for name in lora.layers if name not in LINEAR_LAYERS]
    known = ", ".join(LINEAR_LAYERS)
    return [
        *((True, f"lora.layers {name!r} is unknown (use {known}){meant(name, LINEAR_LAYERS)}") for name in unknown),
        (
            lora.layers and lora.rank > width,
            f"lora.rank {lora.rank} is above model.width {width}: a product of rank {width} is any change of a kernel "
            "already (lower it)",
        ),
        (
            lora.layers and not config.reads_encoder,
            f"lora.layers {', '.join(lora.layers)}: no task reads the encoder, whose layers these are",
        ),
        (
            lora.layers and not (config.train.start_from or config.model.pretrained),
            f"lora.layers {', '.join(lora.layers)} adapts weights that are there: name them in train.start_from or "
            "model.pretrained",
        ),
    ]
