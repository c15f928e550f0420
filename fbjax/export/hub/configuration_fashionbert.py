"""FashionBERT's configuration: BERT's settings under their usual names, and the settings that FashionBERT adds."""

from transformers import BertConfig


class FashionBertConfig(BertConfig):
    """The content of config.json: BERT's settings and these.

    embedding_dim: size of a branch's vectors of texts, images and products; 0: the model makes no vectors.
    contrast: what their contrast was: "softmax", "sigmoid", "hinge" or "hardest".
    match_reads: input of the match head: "cls", or "cls+cosine", which adds the cosine of the two modalities' means.
    cross_attention: "joint", one softmax over text and image, or "gated", a learned share of the other modality a head.
    branches: what makes a vector: "encoder", "linear" (n-grams and patch features side by side), or "both".
    encoder_tokens: tokens of a text that the encoder reads beside a linear branch; 0: all.
    image_weight: of an image beside the text in a product's vector of the linear branch.
    ngrams: numbers of n-grams ("codes"), rows of their table ("rows") and "buckets"; None without a linear branch.
    tasks: the tasks that the model was trained for, of "mlm", "mpm", "tia" (matching) and "itc" (vectors).
    patches: the network that makes an image's features, the image's geometry, and the features' number and size.
    fbjax: the run that this was exported from, for `fbjax import`.
    """

    model_type = "fashionbert"

    def __init__(
        self,
        embedding_dim=0,
        contrast="softmax",
        match_reads="cls",
        cross_attention="joint",
        branches="encoder",
        encoder_tokens=0,
        image_weight=1.0,
        ngrams=None,
        tasks=("mlm", "mpm", "tia"),
        patches=None,
        fbjax=None,
        **bert,
    ):
        self.embedding_dim, self.contrast = embedding_dim, contrast
        self.match_reads, self.cross_attention = match_reads, cross_attention
        self.branches, self.encoder_tokens, self.ngrams = branches, encoder_tokens, ngrams
        self.image_weight = image_weight
        self.tasks = list(tasks)
        self.patches = patches or {"network": "features", "num_patches": 64, "feature_size": 2048}
        self.fbjax = fbjax
        super().__init__(**bert)
