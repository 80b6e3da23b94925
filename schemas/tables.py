"""The only authority on tables: name, columns, Arrow types, meaning and unit of everything that is published."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from schemas.errors import UnknownTable

VECTOR = pa.list_(pa.field("element", pa.float32(), nullable=False))
ROW_GROUP_BYTES = 16 << 20
"""At most so many bytes of rows, before compression, in one row group."""
PART_BYTES = 128 << 20
"""At most so many bytes of rows, before compression, in one part."""
ATTRIBUTES = pa.map_(pa.string(), pa.string())


@dataclass(frozen=True)
class Column:
    """One column: Arrow type, what it means, its unit, and whether it may be null."""

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """One published table: what a row is, and its columns in order."""

    name: str
    row: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema that every part must have exactly."""
        return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns])

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the `list<float32>` columns."""
        return tuple(c.name for c in self.columns if c.type == VECTOR)


def _columns(*rows: tuple[str, pa.DataType, str] | tuple[str, pa.DataType, str, str]) -> tuple[Column, ...]:
    """A trailing `?` on a name marks a column that may be null."""
    return tuple(
        Column(row[0].rstrip("?"), row[1], row[2], row[3] if len(row) == 4 else "", row[0].endswith("?"))
        for row in rows
    )


_STAGE = ("stage", pa.string(), "digest of the stage that made this row")
_MODEL = ("model", pa.string(), "full model ref")
_SITE = ("site", pa.string(), "canonical site, as in `miclip sites`")
_UNIT = ("unit", pa.int32(), "channel of the site, 0-based")
_SAE = ("sae", pa.string(), "ref of the SAE: sae:<stage>")
_CODE = "as in the model where decoder rows have unit norm"
_FEATURE = ("feature", pa.int32(), "latent of the SAE, 0-based")
_UNITS = (
    ("sae?", pa.string(), "ref of the SAE whose latents the units are; null for neurons"),
    ("unit_kind", pa.string(), "neurons or features"),
)
_VARIANT = (
    ("method", pa.string(), "miclip, act_values, auroc, clip_dissect, netdissect or v_interp"),
    (
        "variant",
        pa.string(),
        "method and what sets it apart, the same for all seeds: miclip in+out, auroc pool=max",
    ),
    ("seed?", pa.int64(), "of the neuron encoder; null for methods without one"),
)
_CONCEPT = (
    ("concept_id", pa.int32(), "place in the list of concepts, 0-based"),
    ("concept", pa.string(), "its name"),
)
_CHANGE = (
    ("op", pa.string(), "scale (u becomes beta u) or add (u becomes u + beta)"),
    ("beta", pa.float64(), "2 enhances and 0 removes if scaled"),
    ("error_mode", pa.string(), "keep, or drop what the SAE does not reconstruct"),
    ("positions", pa.string(), "tokens at which units were changed: all, patch or cls"),
)
_INTS = pa.list_(pa.field("element", pa.int32(), nullable=False))
_IMAGE = (
    ("image_id", pa.string(), "first 32 hex digits of the sha256 of the image bytes"),
    ("image_index", pa.int64(), "row of the image in its index"),
)
_TOKEN = (
    "token",
    pa.int32(),
    "position inside the site: patch number row-major, or token index for @all; -1 if reduced",
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "models",
            "one inspected model",
            _columns(
                _STAGE,
                _MODEL,
                ("family", pa.string(), "architecture family the adapter recognised"),
                ("revision?", pa.string(), "resolved revision of a hub checkpoint"),
                ("weights_sha256", pa.string(), "sha256 of the checkpoint bytes"),
                ("files_sha256", pa.string(), "sha256 over weights, configuration and tokeniser"),
                ("library_versions", ATTRIBUTES, "versions of the libraries that built the model"),
                ("n_layers", pa.int32(), "blocks"),
                ("n_heads?", pa.int32(), "attention heads per block"),
                ("head_dim?", pa.int32(), "width of one head", "channels"),
                ("width", pa.int32(), "width of the residual stream or last stage", "channels"),
                ("mlp_width?", pa.int32(), "neurons per block"),
                ("embed_dim?", pa.int32(), "width of the image embedding", "channels"),
                ("n_prefix", pa.int32(), "class and register tokens before the patches", "tokens"),
                ("grid_h?", pa.int32(), "patch grid rows"),
                ("grid_w?", pa.int32(), "patch grid columns"),
                ("input_h", pa.int32(), "input height", "pixels"),
                ("input_w", pa.int32(), "input width", "pixels"),
                ("act_kind", pa.string(), "nonlinearity of the MLPs or convolutions"),
                ("pool", pa.string(), "how tokens become one vector: tok, avg, map, attnpool or none"),
                ("has_text", pa.bool_(), "whether it has a text tower"),
                ("parameters", pa.int64(), "parameters of the whole model"),
                ("flops", pa.int64(), "forward pass of the image tower, per image", "FLOP"),
                ("sites", pa.list_(pa.field("element", pa.string(), nullable=False)), "canonical sites"),
                ("facts", pa.string(), "all static facts as JSON"),
            ),
        ),
        Table(
            "images",
            "one file or record of an image set; rows with the same bytes share image_id, the later ones name the first",
            _columns(
                _STAGE,
                *_IMAGE,
                ("uri", pa.string(), "where the bytes are; a record inside a container is `container#record`"),
                ("bytes", pa.int64(), "size of the encoded image", "bytes"),
                ("sha256", pa.string(), "sha256 of the bytes, 64 hex digits"),
                ("width", pa.int32(), "decoded width, in the orientation of the index", "pixels"),
                ("height", pa.int32(), "decoded height, in the orientation of the index", "pixels"),
                ("format", pa.string(), "container format: JPEG, PNG, ..."),
                ("mode", pa.string(), "pixel mode before conversion to RGB"),
                ("label?", pa.string(), "class name, from the folder or the labels file"),
                ("caption?", pa.string(), "caption, from the labels file or the record"),
                ("attributes", ATTRIBUTES, "every other column of the labels file, as text"),
                ("duplicate_of?", pa.string(), "uri of the first row with the same bytes; null on the first"),
                ("thumbnail", pa.binary(), "JPEG, longer side at most 64 pixels"),
            ),
        ),
        Table(
            "bad_inputs",
            "one image that was set aside, and why",
            _columns(
                _STAGE,
                ("image_id?", pa.string(), "as in images; null when the bytes could not be read whole"),
                ("image_index", pa.int64(), "row in the index"),
                ("uri", pa.string(), "where the bytes are"),
                (
                    "reason",
                    pa.string(),
                    "not_an_image, truncated, empty, too_large, unsupported, checksum, missing or nonfinite",
                ),
                ("detail", pa.string(), "what was found"),
            ),
        ),
        Table(
            "activations",
            "one position of one image at one site",
            _columns(
                _STAGE, _MODEL, _SITE, *_IMAGE, _TOKEN, ("act", VECTOR, "activation of every unit", "as in the model")
            ),
        ),
        Table(
            "embeddings",
            "one image",
            _columns(
                _STAGE,
                _MODEL,
                *_IMAGE,
                ("norm", pa.float32(), "L2 norm of the embedding before normalisation"),
                ("embedding", VECTOR, "image embedding, not normalised", "as in the model"),
            ),
        ),
        Table(
            "predictions",
            "one of the most probable classes of one image",
            _columns(
                _STAGE,
                _MODEL,
                *_IMAGE,
                ("rank", pa.int32(), "0 is the prediction"),
                ("class_id", pa.int32(), "number of the class in the spec's list or the model's head"),
                ("class_name", pa.string(), "name of the class"),
                ("score", pa.float32(), "cosine similarity (zero-shot) or logit (head)"),
                ("probability", pa.float32(), "softmax over all classes, with the model's logit scale if zero-shot"),
            ),
        ),
        Table(
            "text_embeddings",
            "one text, or one class averaged over templates",
            _columns(
                _STAGE,
                _MODEL,
                ("text_id", pa.int32(), "number in the list"),
                ("text", pa.string(), "the text or class name, stripped"),
                ("embedding", VECTOR, "L2-normalised text embedding"),
            ),
        ),
        Table(
            "activation_moments",
            "one unit of one site, over all images and positions",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                _UNIT,
                ("n", pa.int64(), "values seen: images times positions"),
                ("mean", pa.float64(), "mean"),
                ("variance", pa.float64(), "population variance"),
                ("min", pa.float32(), "smallest value"),
                ("max", pa.float32(), "largest value"),
                ("positive", pa.float64(), "share of values above zero"),
            ),
        ),
        Table(
            "top_images",
            "one of the k images that drive a unit most",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                _UNIT,
                ("rank", pa.int32(), "0 is the strongest; ties by image_id"),
                *_IMAGE,
                ("value", pa.float32(), "largest activation of the unit in this image", "as in the model"),
                ("token", pa.int32(), "position of that value, as in activations"),
            ),
        ),
        Table(
            "sae_metrics",
            "one training step of one SAE",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                ("step", pa.int64(), "0-based"),
                ("tokens", pa.int64(), "tokens seen after this step, over all data-parallel workers"),
                ("loss", pa.float32(), "what was minimised", "normalised activations"),
                (
                    "mse",
                    pa.float32(),
                    "squared error, summed over the width, mean over tokens",
                    "normalised activations",
                ),
                ("aux", pa.float32(), "loss that revives dead latents, before its weight"),
                ("fvu", pa.float32(), "fraction of variance unexplained in this batch"),
                ("l0", pa.float32(), "active latents per token"),
                ("dead", pa.int32(), "latents that have not fired for the stated number of tokens"),
                ("threshold?", pa.float32(), "running inference threshold; null before it is known"),
                ("lr", pa.float32(), "learning rate of this step"),
                ("grad_norm", pa.float32(), "norm of the gradient before clipping"),
            ),
        ),
        Table(
            "sae_summary",
            "one SAE: its settings, and how it does on images that training never saw",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                ("sae", pa.string(), "ref of this SAE: sae:<stage>"),
                ("source", pa.string(), "miclip, or the format that it was imported from"),
                ("arch", pa.string(), "relu, gated, topk, batchtopk, matryoshka or jumprelu"),
                ("d", pa.int32(), "width of the site", "channels"),
                ("latents", pa.int32(), "width of the dictionary", "latents"),
                ("k?", pa.int32(), "active latents per token that were asked for"),
                ("l1?", pa.float64(), "weight of the sparsity penalty"),
                ("lr?", pa.float64(), "learning rate"),
                ("seed?", pa.int64(), "of the initial weights"),
                ("steps?", pa.int64(), "training steps"),
                ("tokens?", pa.int64(), "tokens seen in training"),
                ("norm_scale", pa.float64(), "codes divided by this are in the normalised units of training"),
                ("gamma", pa.float64(), "norm of the mean over norm of the standard deviation of the measured tokens"),
                ("dead_at_end?", pa.int32(), "latents that counted as dead when the last step began"),
                ("images", pa.int64(), "held-out images measured"),
                ("measured_tokens", pa.int64(), "held-out tokens measured"),
                (
                    "fvu",
                    pa.float64(),
                    "fraction of variance unexplained: squared error over squared distance to the mean",
                ),
                (
                    "fvu_centred",
                    pa.float64(),
                    "the same with the mean error removed, as dictionary_learning reports it",
                ),
                ("explained_variance", pa.float64(), "1 - fvu"),
                ("l0", pa.float64(), "active latents per token"),
                ("l1_norm", pa.float64(), "sum of codes per token", "as in the model"),
                ("cosine", pa.float64(), "mean cosine of activation and reconstruction"),
                ("l2_ratio", pa.float64(), "mean norm of the reconstruction over that of the activation"),
                ("relative_bias?", pa.float64(), "squared norm of reconstructions over their product with activations"),
                ("dead_fraction", pa.float64(), "share of latents that never fire on the held-out tokens"),
                ("loss_kind?", pa.string(), "zero_shot or head; null without classes that images are labelled with"),
                ("loss_original?", pa.float64(), "cross-entropy of the model as it is", "nats"),
                ("loss_spliced?", pa.float64(), "with the site replaced by its reconstruction", "nats"),
                ("loss_zero?", pa.float64(), "with the site set to zero", "nats"),
                ("loss_mean?", pa.float64(), "with the site set to its mean", "nats"),
                ("recovered_zero?", pa.float64(), "share of the loss between zero and original that is recovered"),
                ("recovered_mean?", pa.float64(), "share of the loss between mean and original that is recovered"),
                ("kl_spliced?", pa.float64(), "divergence of the spliced model's classes from the original's", "nats"),
                ("top1_original?", pa.float64(), "accuracy of the model as it is"),
                ("top1_spliced?", pa.float64(), "accuracy with the reconstruction"),
                ("embedding_cosine?", pa.float64(), "mean cosine of spliced and original image embeddings"),
                ("config", pa.string(), "settings and SaeConfig as JSON"),
            ),
        ),
        Table(
            "sae_codes",
            "one active latent of one token, sorted by feature",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                _SAE,
                _FEATURE,
                *_IMAGE,
                _TOKEN,
                ("value", pa.float32(), "code; never 0", _CODE),
            ),
        ),
        Table(
            "sae_features",
            "one latent of an SAE, dead ones too; active means a code above zero",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                _SAE,
                _FEATURE,
                ("n_active", pa.int64(), "tokens on which it is active"),
                ("images_active", pa.int64(), "images with at least one such token"),
                ("density", pa.float64(), "share of all tokens on which it is active"),
                ("is_dead", pa.bool_(), "never active on these images"),
                ("mean?", pa.float32(), "mean of active codes", _CODE),
                ("std?", pa.float32(), "population standard deviation of active codes", _CODE),
                ("min_pos?", pa.float32(), "smallest active code", _CODE),
                ("p50?", pa.float32(), "median of active codes, between two by linear interpolation", _CODE),
                ("p90?", pa.float32(), "90 % of active codes are at most this", _CODE),
                ("p99?", pa.float32(), "99 % of active codes are at most this", _CODE),
                ("max?", pa.float32(), "largest code", _CODE),
                ("skewness?", pa.float64(), "over all tokens with their zeros, population moments; null if constant"),
                ("kurtosis?", pa.float64(), "likewise, in excess of the normal distribution's 3"),
                (
                    "histogram",
                    pa.list_(pa.field("element", pa.int64(), nullable=False)),
                    "active codes in 64 bins, bin i from 2^(-16 + i/2) up to half an octave more; the outer ones are open",
                ),
                ("enc_dec_cos", pa.float32(), "cosine of its encoder and decoder rows"),
                ("decoder_norm", pa.float32(), "length of its decoder row"),
                ("b_enc", pa.float32(), "encoder bias; of a gated SAE that of its gate"),
                (
                    "neighbours",
                    pa.list_(pa.field("element", pa.int32(), nullable=False)),
                    "the three latents with the nearest decoder rows, nearest first",
                ),
                ("neighbour_cos", VECTOR, "cosines of their decoder rows with its own"),
                ("clarity?", pa.float64(), "mean cosine of the image embeddings over pairs of its top images"),
                ("clarity_baseline?", pa.float64(), "its expectation for as many random images"),
                ("clarity_z?", pa.float64(), "clarity above that, in standard deviations over sets of random images"),
                (
                    "monosemanticity?",
                    pa.float64(),
                    "mean cosine of image embeddings over pairs of images, weighted by the product of their largest codes",
                ),
            ),
        ),
        Table(
            "sae_top_images",
            "one of the images in which a latent's largest code is highest; images where it is not active are left out",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                _SAE,
                _FEATURE,
                ("rank", pa.int32(), "0 is the strongest; ties by image_id"),
                *_IMAGE,
                ("uri?", pa.string(), "where the bytes of the image are"),
                ("value", pa.float32(), "largest code over the positions of the image", _CODE),
                ("token", pa.int32(), "the first position with that code, as in sae_codes"),
                ("image_mean", pa.float32(), "mean code over all positions of the image", _CODE),
                (
                    "map?",
                    VECTOR,
                    "codes over the patch grid, row-major, 0 where there is none; null without a grid",
                    _CODE,
                ),
                ("grid_h?", pa.int32(), "rows of that grid"),
                ("grid_w?", pa.int32(), "columns of that grid"),
            ),
        ),
        Table(
            "sae_selectivity",
            "how well a latent tells one concept, for the best concepts of each latent and the best latents of each concept",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                _SAE,
                _FEATURE,
                (
                    "level",
                    pa.string(),
                    "`image`: largest code per image and its labels; `patch`: code and truth per patch",
                ),
                (
                    "concept",
                    pa.string(),
                    "`column=value` of the image's labels, or `category=value` of the patch's truth",
                ),
                ("n_pos", pa.int64(), "images or patches with the concept"),
                ("n", pa.int64(), "images or patches of which it is known"),
                (
                    "auroc",
                    pa.float64(),
                    "chance that one with the concept has the larger code, ties half; 0.5 knows nothing",
                ),
                ("best_f1", pa.float64(), "F1 of `code >= f1_threshold`, the best over all active codes"),
                ("f1_threshold?", pa.float32(), "that threshold, the largest of equally good ones", _CODE),
                ("precision?", pa.float64(), "at that threshold"),
                ("recall?", pa.float64(), "at that threshold"),
                (
                    "rank_in_feature?",
                    pa.int32(),
                    "0 is the latent's best concept of this level by AUROC; null beyond the best",
                ),
                ("rank_in_concept?", pa.int32(), "0 is the concept's best latent by AUROC; null beyond the best"),
            ),
        ),
        Table(
            "probe_summary",
            "one linear probe: what it was fitted on, and how well it tells images that it did not see",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                ("pool", pa.string(), "how the positions of the site become one vector: mean or max"),
                ("classes", pa.int32(), "classes that it tells"),
                ("images", pa.int64(), "images with activations, each of which has predictions"),
                ("images_labelled", pa.int64(), "of them those of one of the classes"),
                ("folds", pa.int32(), "parts of the labelled images, each predicted by the probe of all others"),
                ("l2", pa.float64(), "weight of half the sum of squared weights"),
                ("seed", pa.int64(), "of the folds"),
                ("accuracy", pa.float64(), "share of the labelled images whose first prediction is their class"),
                ("accuracy_majority", pa.float64(), "share of them that are of the most frequent class"),
            ),
        ),
        Table(
            "align_metrics",
            "one training step of one neuron encoder, before its update",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                ("step", pa.int64(), "0-based"),
                ("loss", pa.float32(), "w_out loss_out + w_in loss_in", "nats"),
                ("loss_out?", pa.float32(), "towards the texts of the predicted classes", "nats"),
                ("loss_in?", pa.float32(), "towards the embeddings of the images", "nats"),
                (
                    "acc_row_out?",
                    pa.float32(),
                    "share of images that are nearest to their own class's text in the batch",
                ),
                ("acc_row_in?", pa.float32(), "share of images that are nearest to their own embedding in the batch"),
                ("logit_scale", pa.float32(), "what multiplies cosines"),
            ),
        ),
        Table(
            "alignments",
            "one neuron encoder: how it was trained, and how that ended",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                ("encoder", pa.string(), "ref of the encoder: align:<stage>"),
                ("clip", pa.string(), "ref of the CLIP whose space it maps into"),
                ("pool", pa.string(), "how the positions of the site become one vector: mean or max"),
                ("templates", pa.string(), "prompts around the class names, as JSON"),
                ("d", pa.int32(), "width of the site", "channels"),
                ("dim", pa.int32(), "width of the embeddings", "channels"),
                ("classes", pa.int32(), "classes that are predicted"),
                ("images", pa.int64(), "images with activation, embedding and, if any are predicted, class"),
                ("images_held_out", pa.int64(), "of them not trained on, to stop early"),
                ("w_out", pa.float64(), "weight of the loss towards class texts"),
                ("w_in", pa.float64(), "weight of the loss towards image embeddings"),
                ("logit_scale", pa.float64(), "at the end of training"),
                ("bias", pa.bool_(), "whether the map has a constant"),
                ("standardise", pa.bool_(), "whether channels were standardised"),
                ("lr", pa.float64(), "learning rate"),
                ("batch", pa.int32(), "images in a batch"),
                ("seed", pa.int64(), "of weights and order"),
                ("steps", pa.int64(), "updates of the weights that are kept"),
                ("final_loss", pa.float64(), "mean over the last tenth of the steps", "nats"),
                ("final_out?", pa.float64(), "the same of loss_out", "nats"),
                ("final_in?", pa.float64(), "the same of loss_in", "nats"),
                (
                    "zero_channels",
                    _INTS,
                    "channels that are 0 on every image, if they are more than half",
                ),
            ),
        ),
        Table(
            "unit_concepts",
            "one of the best concepts of a unit, or one of the best units of a concept, by one method",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                *_UNITS,
                *_VARIANT,
                ("direction", pa.string(), "describe: the concepts of a unit; localise: the units of a concept"),
                ("unit", pa.int32(), "channel of the site or latent of the SAE, 0-based"),
                *_CONCEPT,
                ("rank", pa.int32(), "0 is the best: of the unit's concepts, or of the concept's units"),
                ("score", pa.float32(), "larger is more alike; comparable within one variant only"),
                ("is_dead", pa.bool_(), "whether the unit is 0 on all images or has no direction"),
            ),
        ),
        Table(
            "descriptions",
            "one method on the units of one site: what it was asked, and of how many units it knows something",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                *_UNITS,
                *_VARIANT,
                ("similarity?", pa.string(), "similarity function of clip_dissect"),
                ("unit_mode?", pa.string(), "which vector stands for a unit in miclip"),
                ("encoder?", pa.string(), "ref of the neuron encoder: align:<stage>"),
                ("clip?", pa.string(), "ref of the CLIP in whose space scores are"),
                ("templates?", pa.string(), "prompts around the names, as JSON"),
                ("pool?", pa.string(), "how the positions of the site became one activation per image"),
                ("tau", pa.int32(), "length of the lists"),
                ("concepts", pa.int32(), "concepts to choose from"),
                ("units", pa.int32(), "units of the site or SAE"),
                ("units_dead", pa.int32(), "of them 0 on all images or without a direction"),
                ("units_described", pa.int32(), "units with at least one concept"),
                ("concepts_located", pa.int32(), "concepts with at least one unit"),
                ("images", pa.int64(), "images that units were seen on"),
            ),
        ),
        Table(
            "unit_iou",
            "overlap of where a unit is on and where a concept is, over all images",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                *_UNITS,
                ("unit", pa.int32(), "channel of the site or latent of the SAE, 0-based"),
                *_CONCEPT,
                ("intersection", pa.int64(), "pixels of both", "pixels"),
                ("union", pa.int64(), "pixels of one or both", "pixels"),
                ("iou", pa.float64(), "intersection / union"),
                ("is_detector", pa.bool_(), "whether iou is above 0.04"),
                ("threshold", pa.float32(), "activation above which the unit is on"),
            ),
        ),
        Table(
            "unit_captions",
            "what one of the patches that excite a unit most was called",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                *_UNITS,
                ("unit", pa.int32(), "channel of the site or latent of the SAE, 0-based"),
                ("rank", pa.int32(), "0 is the patch that excites it most"),
                *_IMAGE,
                _TOKEN,
                ("value", pa.float32(), "activation there"),
                ("text", pa.string(), "the caption; empty where there is none"),
                ("captioner", pa.string(), "who said so"),
                ("prompt_hash", pa.string(), "sha256 of how the captioner reads the prompt"),
            ),
        ),
        Table(
            "intervention_eval",
            "one class under one change of the units that one method found for it",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                *_UNITS,
                *_VARIANT,
                *_CHANGE,
                ("class_id", pa.int32(), "class, 0-based"),
                ("class_name", pa.string(), "its name"),
                ("units", _INTS, "units that were changed"),
                ("n", pa.int64(), "images of the class"),
                ("correct_clean", pa.int64(), "of them right as the model is"),
                ("correct_ref", pa.int64(), "of them right without a change: as the model is, or with reconstructions"),
                ("correct_edit", pa.int64(), "of them right with the change"),
                ("offclass_n", pa.int64(), "images of other classes with this class's units changed"),
                ("offclass_ref", pa.int64(), "of them right without the change"),
                ("offclass_edit", pa.int64(), "of them right with it"),
            ),
        ),
        Table(
            "intervention_summary",
            "one change of the units that one method found, over all classes",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                *_UNITS,
                *_VARIANT,
                *_CHANGE,
                ("classes", pa.int32(), "classes with images"),
                ("n", pa.int64(), "images"),
                ("acc_clean", pa.float64(), "share of right answers as the model is"),
                ("acc_ref", pa.float64(), "share without a change"),
                ("dacc", pa.float64(), "mean over classes of the change of accuracy", "percentage points"),
                ("dacc_low?", pa.float64(), "95 % bootstrap interval over classes", "percentage points"),
                ("dacc_high?", pa.float64(), "95 % bootstrap interval over classes", "percentage points"),
                (
                    "p_value?",
                    pa.float64(),
                    "that accuracies do not change, of two sides over classes; null below 6 classes",
                ),
                ("test?", pa.string(), "wilcoxon_exact or wilcoxon_normal"),
                ("n_pairs", pa.int32(), "classes that were compared"),
                ("offclass_dacc?", pa.float64(), "the same on images of other classes", "percentage points"),
                ("offclass_low?", pa.float64(), "95 % bootstrap interval over classes", "percentage points"),
                ("offclass_high?", pa.float64(), "95 % bootstrap interval over classes", "percentage points"),
            ),
        ),
        Table(
            "layer_trace",
            "how near one image is to one label at one layer",
            _columns(
                _STAGE,
                _MODEL,
                *_IMAGE,
                ("layer", pa.int32(), "number of the block; vectors behind all blocks count on"),
                _SITE,
                ("label_role", pa.string(), "truth: what it shows; wrong: what it, or its wrong twin, is mistaken for"),
                ("label_id", pa.int32(), "class, 0-based"),
                ("label", pa.string(), "its name"),
                ("cosine", pa.float32(), "of the embedded activation with the text of the label"),
            ),
        ),
        Table(
            "error_traces",
            "where along the layers one image leans to its true class and where it is lost",
            _columns(
                _STAGE,
                _MODEL,
                *_IMAGE,
                *_VARIANT,
                ("truth_id", pa.int32(), "true class"),
                ("truth", pa.string(), "its name"),
                ("predicted_id", pa.int32(), "class that the model predicts"),
                ("predicted", pa.string(), "its name"),
                ("wrong_id?", pa.int32(), "class it is traced against; null if no image of its class was mistaken"),
                ("wrong?", pa.string(), "its name"),
                ("is_error", pa.bool_(), "whether prediction and truth differ"),
                ("peak_layer?", pa.int32(), "layer of the largest lead of the truth over the wrong class"),
                ("max_lead?", pa.float32(), "that lead, a difference of cosines"),
                (
                    "cross_layer?",
                    pa.int32(),
                    "first layer behind the peak at which the wrong class leads; null if there is none",
                ),
                ("persistent", pa.bool_(), "whether it then leads to the last layer"),
            ),
        ),
        Table(
            "trace_summary",
            "all wrong, or all right, images of one trace",
            _columns(
                _STAGE,
                _MODEL,
                *_VARIANT,
                ("images_are", pa.string(), "wrong or right"),
                ("images", pa.int64(), "images"),
                ("unknown", pa.int64(), "of them without a wrong class to be traced against"),
                ("never_led", pa.int64(), "of them with the wrong class ahead at every layer"),
                ("crossed", pa.int64(), "of them with a layer at which the truth loses the lead"),
                ("persistent", pa.int64(), "of them where it stays lost"),
                ("crossed_share?", pa.float64(), "crossed of those that are known; of right images the false alarms"),
                ("layers", _INTS, "numbers of the layers, as in layer_trace"),
                (
                    "peaks",
                    pa.list_(pa.field("element", pa.int64(), nullable=False)),
                    "images whose lead is largest there",
                ),
                ("crossings", pa.list_(pa.field("element", pa.int64(), nullable=False)), "images that cross there"),
            ),
        ),
        Table(
            "attention_maps",
            "where the class token of one image looks, as it is or with only the features of one concept in the patches",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                *_UNITS,
                *_VARIANT,
                *_IMAGE,
                ("uri", pa.string(), "where the image is"),
                *_CONCEPT,
                (
                    "shows",
                    pa.string(),
                    "features: only those of the concept; model: the model's own attention, nothing changed",
                ),
                ("layer", pa.int32(), "block whose attention it is"),
                ("units", _INTS, "features that were left"),
                ("grid_h", pa.int32(), "rows of the map"),
                ("grid_w", pa.int32(), "columns of the map"),
                ("saliency", VECTOR, "row-major, sums to 1"),
                ("entropy", pa.float32(), "of the map; log(grid_h grid_w) where it is uniform", "nats"),
                (
                    "truth_mass?",
                    pa.float32(),
                    "share of the map on patches that show the concept; null where that is not known",
                ),
                (
                    "truth_area?",
                    pa.float32(),
                    "share of patches that show it, which a uniform map would have as its mass",
                ),
                ("is_hit?", pa.bool_(), "whether the largest value is on such a patch (pointing game)"),
            ),
        ),
        Table(
            "geometry_points",
            "one unit that stands for concepts of one group, and its place in the plane",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                *_UNITS,
                *_VARIANT,
                ("unit", pa.int32(), "channel of the site or latent of the SAE, 0-based"),
                ("group", pa.string(), "group of its concepts"),
                ("concept", pa.string(), "of them the one it is ranked best for"),
                ("x?", pa.float32(), "t-SNE of cosine distances; null without a direction"),
                ("y?", pa.float32(), "t-SNE of cosine distances; null without a direction"),
            ),
        ),
        Table(
            "geometry_summary",
            "how well groups of units are told apart by direction",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                *_UNITS,
                *_VARIANT,
                ("groups", pa.int32(), "groups with units"),
                ("units", pa.int32(), "units of exactly one group that have a direction"),
                ("neighbours", pa.int32(), "nearest units that count for purity"),
                ("silhouette?", pa.float64(), "mean under cosine distance, from -1 to 1"),
                ("silhouette_p?", pa.float64(), "share of random labellings that do as well"),
                ("purity?", pa.float64(), "mean share of a unit's nearest that are of its group"),
                ("purity_p?", pa.float64(), "share of random labellings that do as well"),
                ("purity_chance?", pa.float64(), "mean of purity over random labellings"),
                ("concepts_ungrouped", pa.int32(), "concepts of no group, left out"),
                ("concepts_ambiguous", pa.int32(), "concepts of several groups, left out"),
                ("units_shared", pa.int32(), "units of several groups, left out"),
            ),
        ),
        Table(
            "description_eval",
            "one unit: what one method says of it beside what it stands for",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                *_UNITS,
                *_VARIANT,
                ("unit", pa.int32(), "channel of the site or latent of the SAE, 0-based"),
                ("truth", pa.string(), "concept that it stands for"),
                ("truth_score?", pa.float32(), "AUROC of that; null where units are classes"),
                ("predicted?", pa.string(), "first of its description; null without one"),
                ("correct?", pa.bool_(), "whether that is the truth; null if the truth was not among the concepts"),
                ("clip_score?", pa.float32(), "cosine of both texts in the CLIP"),
                ("sentence_score?", pa.float32(), "cosine of both texts by the sentence encoder"),
            ),
        ),
        Table(
            "method_scores",
            "one measure of one method on the units of one site",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                *_UNITS,
                *_VARIANT,
                (
                    "measure",
                    pa.string(),
                    "accuracy, clip_score, sentence_score (over units), precision (of localised units, over concepts), or "
                    "dacc and offclass_dacc with the change, such as dacc x0 keep (over classes)",
                ),
                ("n", pa.int64(), "units, concepts or classes"),
                ("value?", pa.float64(), "mean over them; percentage points for dacc"),
                ("low?", pa.float64(), "95 % bootstrap interval over them; null below 6"),
                ("high?", pa.float64(), "95 % bootstrap interval over them; null below 6"),
                ("ceiling?", pa.float64(), "what a perfect method would have, where that is below 1"),
            ),
        ),
        Table(
            "method_tests",
            "one method against another by one measure, paired over units, concepts or classes",
            _columns(
                _STAGE,
                _MODEL,
                _SITE,
                *_UNITS,
                ("measure", pa.string(), "as in method_scores"),
                (
                    "variant",
                    pa.string(),
                    "the method; over its seeds values are averaged, for accuracy the first seed counts",
                ),
                ("against", pa.string(), "the method it is compared with"),
                ("seeds", pa.int32(), "encoders of the method"),
                ("sd_seed?", pa.float64(), "standard deviation of its mean over seeds; null below two"),
                ("n_pairs", pa.int32(), "units, concepts or classes that both have a value for"),
                ("difference?", pa.float64(), "mean of method minus the other"),
                ("low?", pa.float64(), "95 % bootstrap interval; null below 6 pairs"),
                ("high?", pa.float64(), "95 % bootstrap interval; null below 6 pairs"),
                ("test?", pa.string(), "mcnemar_exact, wilcoxon_exact or wilcoxon_normal; null below 6 pairs"),
                ("p_value?", pa.float64(), "of two sides"),
                ("p_holm?", pa.float64(), "corrected over all rows of the stage (Holm)"),
            ),
        ),
        Table(
            "selftest",
            "one deterministic row",
            _columns(
                _STAGE,
                ("row", pa.int64(), "row number"),
                ("value", pa.float64(), "a pure function of (seed, row)"),
                ("vector", VECTOR, "four values derived from it"),
            ),
        ),
        Table(
            "selftest_summary",
            "the whole selftest",
            _columns(
                _STAGE,
                ("rows", pa.int64(), "rows of selftest"),
                ("total", pa.float64(), "sum of value in row order"),
            ),
        ),
    )
}


def get_table(name: str) -> Table:
    """Look a table up.

    Raises:
        UnknownTable: no such table.
    """
    if name not in TABLES:
        raise UnknownTable(f"table {name!r} does not exist; there are {', '.join(TABLES)}")
    return TABLES[name]
