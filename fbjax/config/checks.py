"""What a config must fulfil before long work starts. Checked as a whole by `fbjax.config.load.freeze`."""

import math

TASKS = ("mlm", "mpm", "tia", "itc")


def contradictions(config) -> list[str]:
    """What of a `Config` is out of range or contradicts what, in words that name the values and the remedy."""
    data, patches, model, tasks = config.data, config.patches, config.model, config.tasks
    adaptive, train = config.adaptive, config.train
    choices = {
        "patches.geometry": (patches.geometry, ("per_patch", "feature_map")),
        "model.dtype": (model.dtype, ("float32", "bfloat16")),
        "model.tia_reads": (model.tia_reads, ("cls", "modalities")),
        "model.cross_attention": (model.cross_attention, ("joint", "gated")),
        "model.attention": (model.attention, ("xla", "cudnn")),
        "model.remat": (model.remat, ("none", "dots", "layers")),
        "adaptive.method": (adaptive.method, ("gradient", "estimate", "loss_softmax", "fixed")),
        "adaptive.scaling": (adaptive.scaling, ("share", "squash")),
    }
    ranges = [
        (
            "tasks.random_negatives_start",
            tasks.random_negatives_start,
            0 <= tasks.random_negatives_start <= 1,
            "in [0, 1]",
        ),
        ("tasks.random_negatives_end", tasks.random_negatives_end, 0 <= tasks.random_negatives_end <= 1, "in [0, 1]"),
        ("tasks.random_negatives_steps", tasks.random_negatives_steps, tasks.random_negatives_steps >= 0, "at least 0"),
        ("adaptive.domain", adaptive.domain, 0 < adaptive.domain < 1, "in (0, 1), Eq. 6's domain as a share of K"),
        ("tasks.mined", tasks.mined, 0 <= tasks.mined <= 1, "in [0, 1]"),
        ("model.embedding_dim", model.embedding_dim, model.embedding_dim >= 0, "at least 0"),
        ("model.gate_start", model.gate_start, math.isfinite(model.gate_start), "finite"),
        ("tasks.mined_steps", tasks.mined_steps, tasks.mined_steps >= 0, "at least 0"),
        ("tasks.mlm_rate", tasks.mlm_rate, 0 < tasks.mlm_rate < 1, "in (0, 1)"),
        ("tasks.mpm_rate", tasks.mpm_rate, 0 < tasks.mpm_rate < 1, "in (0, 1)"),
        ("model.initializer_range", model.initializer_range, 0 < model.initializer_range < 1, "in (0, 1)"),
        ("model.hidden_dropout", model.hidden_dropout, 0 <= model.hidden_dropout < 1, "in [0, 1)"),
        ("model.attention_dropout", model.attention_dropout, 0 <= model.attention_dropout < 1, "in [0, 1)"),
        ("train.learning_rate", train.learning_rate, 0 < train.learning_rate < math.inf, "above 0"),
        ("train.warmup_steps", train.warmup_steps, train.warmup_steps >= 0, "at least 0"),
        ("train.beta1", train.beta1, 0 <= train.beta1 < 1, "in [0, 1)"),
        ("train.beta2", train.beta2, 0 <= train.beta2 < 1, "in [0, 1)"),
        ("train.epsilon", train.epsilon, 0 < train.epsilon < 1, "in (0, 1)"),
        ("train.weight_decay", train.weight_decay, 0 <= train.weight_decay < math.inf, "at least 0"),
        ("train.clip_norm", train.clip_norm, train.clip_norm > 0, "above 0"),
        ("train.seed", train.seed, train.seed >= 0, "at least 0"),
    ]
    positive = {
        f"{section}.{name}": getattr(getattr(config, section), name)
        for section, names in {
            "patches": ("image_size", "patch_size", "patch_input_size", "feature_size"),
            "model": ("num_layers", "width", "num_heads", "mlp_dim", "text_bucket"),
            "adaptive": ("every",),
            "tasks": ("mined_nearest",),
            "train": (
                "batch_size",
                "same_category",
                "micro_batches",
                "num_steps",
                "log_every",
                "save_every",
                "evaluate_products",
            )
            + ("keep_last",),
        }.items()
        for name in names
    }
    problems = [
        f"{name} {value!r} is unknown (use {' or '.join(map(repr, known))})"
        for name, (value, known) in choices.items()
        if value not in known
    ]
    problems += [f"{name} {value} must be {allowed}" for name, value, fits, allowed in ranges if not fits]
    problems += [f"{name} {value} must be at least 1" for name, value in positive.items() if value < 1]
    if not tasks.names or len(set(tasks.names)) < len(tasks.names) or set(tasks.names) - set(TASKS):
        problems.append(f"tasks.names {tasks.names} must be one or more of {', '.join(TASKS)}, each once")
    if problems:  # what follows computes with these values
        return problems
    num_tasks = len(tasks.names)
    rules = [
        (
            patches.image_size % patches.patch_size,
            f"patches.patch_size {patches.patch_size} does not divide image_size {patches.image_size}",
        ),
        (
            patches.cached and patches.trainable,
            "patches.cached and patches.trainable exclude each other: cached features never change",
        ),
        (
            patches.ready_made and not (patches.cached and not patches.whole_image),
            "patches.network 'features' needs patches.cached true and patches.whole_image false: there is no image",
        ),
        (
            patches.ready_made and (model.vocabulary == "used" or model.vocabulary.startswith("train:")),
            f"patches.network 'features': the files hold a vocabulary's row numbers, which model.vocabulary "
            f"{model.vocabulary!r} would not keep (use its vocab.txt, or '' for the pretrained BERT's)",
        ),
        (model.width % model.num_heads, f"model.num_heads {model.num_heads} does not divide model.width {model.width}"),
        (model.text_tokens < 8, f"model.text_tokens {model.text_tokens} is too short (use at least 8)"),
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
            model.gate_start and model.cross_attention != "gated",
            f"model.gate_start {model.gate_start} is for model.cross_attention 'gated', not {model.cross_attention!r}",
        ),
        (
            model.attention == "cudnn" and model.cross_attention == "gated",
            "model.attention 'cudnn' takes no cross_attention 'gated' (use attention 'xla')",
        ),
        (
            train.batch_size % train.micro_batches,
            f"train.micro_batches {train.micro_batches} does not divide batch_size {train.batch_size}",
        ),
        (
            adaptive.every > 1 and adaptive.method != "gradient",
            f"adaptive.every {adaptive.every} is for method 'gradient', not {adaptive.method!r} (leave it at 1)",
        ),
        (
            adaptive.method == "estimate" and adaptive.scaling != "share",
            f"adaptive.scaling {adaptive.scaling!r} wants the norms' true size; method 'estimate' knows only their "
            "shares (use 'share')",
        ),
        (
            adaptive.method == "fixed"
            and (
                len(adaptive.fixed) != num_tasks
                or not all(isinstance(weight, int | float) and weight >= 0 for weight in adaptive.fixed)
                or abs(sum(adaptive.fixed) - 1) > 1e-6
            ),
            f"adaptive.fixed {adaptive.fixed} must be {num_tasks} weights >= 0 that sum to 1, of "
            f"{', '.join(tasks.names)}",
        ),
        (
            not {"tia", "itc"} & set(tasks.names),
            f"tasks.names {tasks.names} has no task that learns which text and image match: add 'tia' or 'itc'",
        ),
        (
            "itc" in tasks.names and model.embedding_dim < 1,
            f"tasks.names has 'itc', which needs towers: set model.embedding_dim, not {model.embedding_dim} (try 256)",
        ),
        (
            model.tia_reads == "modalities" and model.embedding_dim < 1,
            f"model.tia_reads 'modalities' needs model.embedding_dim, the size of what it compares, not "
            f"{model.embedding_dim} (try 256)",
        ),
        (
            "itc" in tasks.names and train.micro_batches > 1,
            f"train.micro_batches {train.micro_batches}: 'itc' contrasts the whole batch, which cannot be taken in "
            "parts (use 1, and model.remat to save memory)",
        ),
        (
            train.batch_size % train.same_category,
            f"train.same_category {train.same_category} does not divide batch_size {train.batch_size}",
        ),
        (
            tasks.mined > 0 and not tasks.mismatched,
            f"tasks.mined {tasks.mined}: only 'tia' reads negative pairs, and tasks.names {tasks.names} lacks it",
        ),
        (
            max(tasks.random_negatives_start, tasks.random_negatives_end) + tasks.mined > 1,
            f"tasks.random_negatives_start {tasks.random_negatives_start} or random_negatives_end "
            f"{tasks.random_negatives_end} and tasks.mined {tasks.mined} are "
            "shares of the same negatives: together at most 1",
        ),
        (
            patches.whole_image
            and (patches.network, patches.geometry) == ("pixels", "per_patch")
            and patches.image_size % patches.patch_input_size,
            f"patches.whole_image: patches.patch_input_size {patches.patch_input_size} does not divide image_size "
            f"{patches.image_size}, which 'pixels' cuts into cells of that size",
        ),
        (
            tasks.mined > 0 and not train.start_from,
            f"tasks.mined {tasks.mined} needs the towers of another run: set train.start_from to its workdir",
        ),
        (
            train.warmup_steps >= train.num_steps,
            f"train.warmup_steps {train.warmup_steps} must be below num_steps {train.num_steps} (lower it as well)",
        ),
        (
            not data.columns.text or not all(data.columns.text),
            f"data.columns.text {data.columns.text} must name at least one column",
        ),
        (
            not data.validation and not 0 < data.holdout < 1,
            f"data.holdout {data.holdout} must lie in (0, 1) where there is no validation table",
        ),
    ]
    return [message for broken, message in rules if broken]
