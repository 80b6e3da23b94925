"""The tables of explanations in words: texts, the choice of alpha, scores, tests, the chosen text of each feature, the map of texts."""

from __future__ import annotations

import pyarrow as pa

from schemas.columns import CODE, FEATURE, IMAGE, INTS, MODEL, SAE, SITE, STAGE, VECTOR, Table, columns

_OF = (STAGE, MODEL, SITE, SAE)
_MASKING = (
    "masking",
    pa.string(),
    "how images showed where the feature is active: masks, heatmaps, or none without images",
)
_EXPLAINED = (
    ("vlm", pa.string(), "full ref of the vision-language model"),
    ("method", pa.string(), "topk (shown images), steering (a blank image) or informed (shown images, steered)"),
    _MASKING,
    ("direction", pa.string(), "what it was steered with: sae, or as a control random or permuted"),
    ("positions", pa.string(), "tokens that were steered: none, active, all, patches or block:n"),
    ("alpha_asked", pa.string(), "auto or a number, in alpha_unit; one variant is one of these"),
    ("alpha_unit", pa.string(), "what alpha multiplies: activation (1), p90 of the feature's codes, or token_norm"),
)
_EXPLANATION = (*_EXPLAINED, ("sequence", pa.int32(), "of several sampled texts; 0 if greedy"))
_TEXT = ("text", pa.string(), "cleaned text")
_IOU = ("iou?", pa.float64(), "mean over its top images of intersection over union")
_CLIP = ("clip?", pa.float64(), "mean over its top images, masked, of the cosine with the text")
_SYNTHETIC = ("synthetic?", pa.float64(), "mean over made images of the feature's activation", CODE)
_NAMED = (
    "named?",
    pa.bool_(),
    "whether the text has the name of the concept that the feature tells best; what is no text has not",
)
STRINGS = pa.list_(pa.field("element", pa.string(), nullable=False))

EXPLANATIONS: tuple[Table, ...] = (
    Table(
        "explanations",
        "one text about one feature of an SAE, or why there is none",
        columns(
            *_OF,
            FEATURE,
            *_EXPLANATION,
            ("alpha", pa.float32(), "the number that was used, in alpha_unit; 0 where nothing is steered"),
            (
                "strength",
                pa.float32(),
                "length of what was added to every steered token; 0 if nothing",
                "as in the model",
            ),
            ("alpha_rel", pa.float32(), "strength over the median length of tokens at the site"),
            ("realised?", pa.float32(), "length of what really changed over strength; null if nothing was added"),
            ("k_eff", pa.int32(), "images that were shown"),
            (
                "full_masks",
                pa.int32(),
                "of them, those that the feature is active all over, which masks leave as they are",
            ),
            ("image_ids", STRINGS, "the shown images"),
            ("seed?", pa.int64(), "of sampling; null if greedy"),
            ("text?", pa.string(), "cleaned text; null unless status is ok"),
            ("raw_text?", pa.string(), "as the model wrote it"),
            ("n_tokens", pa.int32(), "tokens that it wrote"),
            ("mean_logprob?", pa.float32(), "mean log-probability of these tokens"),
            (
                "status",
                pa.string(),
                "ok, empty, refused, no_images (the feature is on no image), or not_finite (numbers overflowed)",
            ),
            ("prompt_sha256?", pa.string(), "of the bytes of the question"),
            ("is_validation", pa.bool_(), "whether alphas were compared on this feature"),
        ),
    ),
    Table(
        "explanation_alphas",
        "one alpha of a grid for one way to steer, and how well its texts find the features of the validation set",
        columns(
            *_OF,
            *_EXPLAINED,
            ("alpha", pa.float32(), "in alpha_unit"),
            ("mean_iou?", pa.float64(), "over features with a text; null if there is none"),
            ("sd_iou?", pa.float64(), "standard deviation over features"),
            ("distinct", pa.float32(), "different texts over all texts: near 0 where steering drowns out everything"),
            ("n", pa.int64(), "features with a text, at most half of those that are active"),
            ("n_empty", pa.int64(), "features without one: empty, refused or not finite"),
            ("is_chosen", pa.bool_(), "the best mean IoU, the smaller alpha of equals"),
        ),
    ),
    Table(
        "explanation_iou",
        "how well a text finds, in one top image, where its feature is active",
        columns(
            *_OF,
            FEATURE,
            *_EXPLANATION,
            *IMAGE,
            ("iou", pa.float32(), "intersection over union of masks of 224 x 224; 0 if both are empty"),
            ("precision", pa.float32(), "share of what the text finds that is the feature's"),
            ("recall", pa.float32(), "share of the feature's that the text finds"),
            ("n_masks", pa.int32(), "masks that the segmenter found for the text"),
        ),
    ),
    Table(
        "explanation_clip",
        "how near a text is to one top image of its feature, all but its active patches black, in the space of a CLIP",
        columns(
            *_OF,
            FEATURE,
            *_EXPLANATION,
            *IMAGE,
            ("clip", pa.string(), "full ref of the CLIP"),
            ("cosine", pa.float32(), "of the embeddings"),
            ("is_truncated", pa.bool_(), "whether the CLIP does not see the text to its end"),
        ),
    ),
    Table(
        "explanation_synthetic",
        "a feature's activation on one image made from a text, or on one random image to compare with",
        columns(
            *_OF,
            FEATURE,
            (
                "vlm?",
                pa.string(),
                "full ref of the vision-language model; this and the next six are null for random images",
            ),
            ("method?", pa.string(), "topk, steering or informed"),
            ("masking?", pa.string(), "masks, heatmaps or none"),
            ("direction?", pa.string(), "sae, random or permuted"),
            ("positions?", pa.string(), "tokens that were steered"),
            ("alpha_asked?", pa.string(), "auto or a number, in alpha_unit"),
            ("alpha_unit?", pa.string(), "activation, p90 or token_norm"),
            ("sequence?", pa.int32(), "of several sampled texts; null for random images"),
            ("number", pa.int32(), "of the image, from 0"),
            ("is_positive", pa.bool_(), "made from a text, not a random one of the image set"),
            ("image_index?", pa.int64(), "row of a random image in its index; null if made"),
            ("seed?", pa.int64(), "that the image was made with; null if random"),
            ("mean", pa.float32(), "mean code over patches", CODE),
            ("max", pa.float32(), "largest code over patches", CODE),
            ("is_black", pa.bool_(), "an all black image, as safety filters return; it does not count"),
        ),
    ),
    Table(
        "explanation_naming",
        "whether a text has the name of the concept that its feature tells best, for features that tell one well",
        columns(
            *_OF,
            FEATURE,
            *_EXPLANATION,
            ("concept", pa.string(), "category=value, as in sae_selectivity"),
            ("auroc", pa.float64(), "how well the feature tells it"),
            ("level", pa.string(), "patch or image, of that AUROC"),
            ("named", pa.bool_(), "whether the value is a word of the text"),
            (
                "share_named",
                pa.float32(),
                "share of all values of the category that the text names: what a blind guess would hit",
            ),
        ),
    ),
    Table(
        "explanation_scores",
        "one explanation with all its scores",
        columns(
            *_OF,
            FEATURE,
            *_EXPLANATION,
            ("alpha", pa.float32(), "the number that was used, in alpha_unit"),
            (
                "status",
                pa.string(),
                "ok, empty, refused, no_images or not_finite; others than ok have no score, and name nothing",
            ),
            ("text?", pa.string(), "cleaned text"),
            _IOU,
            _CLIP,
            _SYNTHETIC,
            ("auroc?", pa.float64(), "of its made images against as many random ones"),
            _NAMED,
            (
                "abstraction?",
                pa.string(),
                "low-level visual feature, high-level visual feature or other; null if nobody labels",
            ),
            ("context?", pa.string(), "animal, background or other; null if nobody labels"),
        ),
    ),
    Table(
        "explanation_summary",
        "one way to explain by one measure, over all features that are scored",
        columns(
            *_OF,
            *_EXPLAINED,
            (
                "metric",
                pa.string(),
                "iou, precision, recall, clip, synthetic, auroc_macro (mean of each feature's), auroc_pooled (all features' "
                "activations in one), named, share_named",
            ),
            ("value?", pa.float64(), "mean over features; null without any"),
            ("sd?", pa.float64(), "standard deviation over features"),
            ("low?", pa.float64(), "95 % interval: bootstrap over features, Wilson for named"),
            ("high?", pa.float64(), "95 % interval"),
            ("n", pa.int64(), "features"),
            (
                "n_empty",
                pa.int64(),
                "features without a text: left out, but for named and share_named, where they are among the n and name nothing",
            ),
            ("is_candidate", pa.bool_(), "whether it takes part in the choice of one text per feature"),
        ),
    ),
    Table(
        "explanation_tests",
        "whether one method is better than another by one measure",
        columns(
            *_OF,
            ("vlm", pa.string(), "full ref of the vision-language model"),
            _MASKING,
            ("metric", pa.string(), "iou, clip or synthetic"),
            ("method_a", pa.string(), "the one that may be better"),
            ("method_b", pa.string(), "the other; empty for shapiro"),
            (
                "test",
                pa.string(),
                "shapiro (of a, once if it is compared in several maskings), mann_whitney (a greater than b, unpaired) or wilcoxon (paired, two sides)",
            ),
            ("statistic?", pa.float64(), "of the test; null where it cannot be computed"),
            ("p?", pa.float64(), "p-value"),
            ("p_holm?", pa.float64(), "corrected over all rows of the stage with this test (Holm)"),
            ("n", pa.int64(), "features; of a paired test those that both have"),
        ),
    ),
    Table(
        "explanation_agreement",
        "scores of features whose topk and steering texts agree at least so well",
        columns(
            *_OF,
            ("vlm", pa.string(), "full ref of the vision-language model"),
            _MASKING,
            ("method", pa.string(), "topk, steering or informed"),
            ("metric", pa.string(), "iou, clip, synthetic, auroc_macro or auroc_pooled"),
            ("threshold", pa.float32(), "least cosine of the two texts"),
            ("value?", pa.float64(), "mean; null without a feature"),
            ("n", pa.int64(), "features"),
        ),
    ),
    Table(
        "selected_explanations",
        "the text chosen for a feature: that of the method with the best ranks over the measures",
        columns(
            *_OF,
            FEATURE,
            *_EXPLANATION,
            (
                "vote",
                pa.string(),
                "masks or heatmaps: among topk and informed with it, and steering; none if there is no other",
            ),
            _TEXT,
            ("mean_rank", pa.float32(), "mean over measures of its rank, 1 is best"),
            ("is_tie", pa.bool_(), "whether others had the same and it was drawn"),
            ("n_methods", pa.int32(), "methods that had a text"),
            _IOU,
            _CLIP,
            _SYNTHETIC,
            ("passed", pa.bool_(), "whether its IoU and its activation on made images are high enough"),
            ("abstraction?", pa.string(), "low-level visual feature, high-level visual feature or other"),
            ("context?", pa.string(), "animal, background or other"),
        ),
    ),
    Table(
        "explanation_map",
        "one text as a point",
        columns(
            *_OF,
            FEATURE,
            *_EXPLANATION,
            _TEXT,
            ("encoder", pa.string(), "what embedded it: ref of a CLIP, or a folder"),
            ("encoder_revision?", pa.string(), "its commit on a hub; null for what lies elsewhere"),
            ("cluster", pa.int32(), "number of its cluster, the largest is 0"),
            ("x", pa.float32(), "coordinate to draw it at"),
            ("y", pa.float32(), "coordinate to draw it at"),
            ("embedding", VECTOR, "unit length"),
        ),
    ),
    Table(
        "explanation_clusters",
        "texts that lie together",
        columns(
            *_OF,
            ("cluster", pa.int32(), "number, the largest cluster is 0"),
            ("topic", pa.string(), "what it is called"),
            ("size", pa.int32(), "texts in it"),
            ("sample", INTS, "features of at most 20 of its texts"),
            ("sample_texts", STRINGS, "these texts"),
        ),
    ),
)
