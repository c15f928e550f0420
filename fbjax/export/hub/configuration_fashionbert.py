"""FashionBERT's configuration: BERT's settings under their usual names, and what FashionBERT adds to them."""

from transformers import PretrainedConfig


class FashionBertConfig(PretrainedConfig):
    """What config.json holds.

    embedding_dim: size of the two towers' vectors; 0: no towers.
    match_reads: what the match head reads: "cls", or "modalities", the cosine of the two modalities' means besides.
    cross_attention: "joint", text and image in one softmax, or "gated", the other modality by a share that each head
        has learned.
    tasks: what the model was trained for, of "mlm", "mpm", "tia" (matching) and "itc" (the towers).
    patches: the network that makes an image's features, how the image is cut, and the features' number and size.
    fbjax: the run that this was exported from, for `fbjax import`.
    """

    model_type = "fashionbert"

    def __init__(
        self,
        vocab_size=30522,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=64,
        type_vocab_size=2,
        hidden_act="gelu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        initializer_range=0.02,
        layer_norm_eps=1e-12,
        pad_token_id=0,
        embedding_dim=0,
        match_reads="cls",
        cross_attention="joint",
        tasks=("mlm", "mpm", "tia"),
        patches=None,
        fbjax=None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.embedding_dim = embedding_dim
        self.match_reads = match_reads
        self.cross_attention = cross_attention
        self.tasks = list(tasks)
        self.patches = patches or {"network": "features", "num_patches": 64, "feature_size": 2048}
        self.fbjax = fbjax
        super().__init__(pad_token_id=pad_token_id, **kwargs)
