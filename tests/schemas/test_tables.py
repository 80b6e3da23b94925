"""Published schemas are a promise: changing one is a decision that is made here too."""

from __future__ import annotations

import pyarrow as pa
import pytest

from schemas.base import digest
from schemas.columns import ATTRIBUTES, VECTOR
from schemas.errors import UnknownTable
from schemas.tables import TABLES, get_table

COLUMNS = {
    "models": "stage model family revision? weights_sha256 files_sha256 library_versions n_layers n_heads? head_dim? width mlp_width? embed_dim? "
    "n_prefix grid_h? grid_w? input_h input_w act_kind pool has_text parameters flops sites facts",
    "images": "stage image_id image_index uri bytes sha256 width height format mode label? caption? attributes duplicate_of? thumbnail",
    "bad_inputs": "stage image_id? image_index uri reason detail",
    "activations": "stage model site image_id image_index token act",
    "embeddings": "stage model image_id image_index norm embedding",
    "predictions": "stage model image_id image_index rank class_id class_name score probability",
    "text_embeddings": "stage model text_id text embedding",
    "activation_moments": "stage model site unit n mean variance min max positive",
    "top_images": "stage model site unit rank image_id image_index value token",
    "sae_codes": "stage model site sae feature image_id image_index token value",
    "sae_features": "stage model site sae feature n_active images_active density is_dead mean? std? min_pos? p50? p90? p99? max? skewness? kurtosis? "
    "histogram enc_dec_cos decoder_norm b_enc neighbours neighbour_cos clarity? clarity_baseline? clarity_z? monosemanticity?",
    "sae_top_images": "stage model site sae feature rank image_id image_index uri? value token image_mean map? grid_h? grid_w?",
    "sae_selectivity": "stage model site sae feature level concept n_pos n auroc best_f1 f1_threshold? precision? recall? rank_in_feature? "
    "rank_in_concept?",
    "sae_metrics": "stage model site step tokens loss mse aux fvu l0 dead threshold? lr grad_norm",
    "sae_summary": "stage model site sae source arch d latents k? l1? lr? seed? steps? tokens? norm_scale gamma dead_at_end? images "
    "measured_tokens fvu fvu_centred explained_variance l0 l1_norm cosine l2_ratio relative_bias? dead_fraction loss_kind? "
    "loss_original? loss_spliced? loss_zero? loss_mean? recovered_zero? recovered_mean? kl_spliced? top1_original? "
    "top1_spliced? embedding_cosine? config",
    "probe_summary": "stage model site pool classes images images_labelled folds l2 seed accuracy accuracy_majority",
    "align_metrics": "stage model site step loss loss_out? loss_in? acc_row_out? acc_row_in? logit_scale",
    "alignments": "stage model site encoder clip pool templates d dim classes images images_held_out w_out w_in logit_scale bias standardise lr "
    "batch seed steps final_loss final_out? final_in? zero_channels",
    "unit_concepts": "stage model site sae? unit_kind method variant seed? direction unit concept_id concept rank score is_dead",
    "descriptions": "stage model site sae? unit_kind method variant seed? similarity? unit_mode? encoder? clip? templates? pool? tau concepts "
    "units units_dead units_described concepts_located images",
    "unit_iou": "stage model site sae? unit_kind unit concept_id concept intersection union iou is_detector threshold",
    "unit_captions": "stage model site sae? unit_kind unit rank image_id image_index token value text captioner prompt_hash",
    "intervention_eval": "stage model site sae? unit_kind method variant seed? op beta error_mode positions class_id class_name units n correct_clean "
    "correct_ref correct_edit offclass_n offclass_ref offclass_edit",
    "intervention_summary": "stage model site sae? unit_kind method variant seed? op beta error_mode positions classes n acc_clean acc_ref dacc dacc_low? "
    "dacc_high? p_value? test? n_pairs offclass_dacc? offclass_low? offclass_high?",
    "layer_trace": "stage model image_id image_index layer site label_role label_id label cosine",
    "error_traces": "stage model image_id image_index method variant seed? truth_id truth predicted_id predicted wrong_id? wrong? is_error peak_layer? "
    "max_lead? cross_layer? persistent",
    "trace_summary": "stage model method variant seed? images_are images unknown never_led crossed persistent crossed_share? layers peaks crossings",
    "attention_maps": "stage model site sae? unit_kind method variant seed? image_id image_index uri concept_id concept shows layer units grid_h grid_w "
    "saliency entropy truth_mass? truth_area? is_hit?",
    "geometry_points": "stage model site sae? unit_kind method variant seed? unit group concept x? y?",
    "geometry_summary": "stage model site sae? unit_kind method variant seed? groups units neighbours silhouette? silhouette_p? purity? purity_p? "
    "purity_chance? concepts_ungrouped concepts_ambiguous units_shared",
    "description_eval": "stage model site sae? unit_kind method variant seed? unit truth truth_score? predicted? correct? clip_score? sentence_score?",
    "method_scores": "stage model site sae? unit_kind method variant seed? measure n value? low? high? ceiling?",
    "method_tests": "stage model site sae? unit_kind measure variant against seeds sd_seed? n_pairs difference? low? high? test? p_value? p_holm?",
    "rosetta_units": "stage model sae? unit_kind site unit depth grid_h grid_w images n mean sd skewness? kurtosis? active images_active "
    "is_dead is_rare",
    "rosetta_neighbours": "stage model_a sae_a? site_a unit_a model_b sae_b? site_b unit_b rank r is_exact",
    "rosetta_buddies": "stage model_a sae_a? site_a unit_a model_b sae_b? site_b unit_b r rank_ab rank_ba place_r null_q999 is_below_null",
    "rosetta_pairs": "stage model_a sae_a? model_b sae_b? k rule units_a units_b images buddies buddies_null above_null share_a share_b r_p50? "
    "r_p90? null_p50 null_q999 null_max inexact shares_training?",
    "rosetta_moments": "stage model sae? unit_kind site unit target_h target_w n mean sd",
    "rosetta_universality": "stage model sae? unit_kind site unit k depth degree models best_r? kurtosis? active",
    "rosetta_cliques": "stage k clique size model sae? unit_kind site unit min_r mean_r is_truncated",
    "rosetta_components": "stage k component units models density longest_path is_path_exact core model sae? unit_kind site unit",
    "rosetta_tuples": "stage anchor_model anchor_sae? anchor_site anchor_unit tuple model sae? unit_kind site unit r alternatives mean_r min_r "
    "is_truncated",
    "rosetta_anchors": "stage model_a sae_a? model_b sae_b? tuples_a tuples_b jaccard?",
    "rosetta_clusters": "stage anchor_model anchor_sae? cluster site unit size density min_r? is_split",
    "rosetta_layers": "stage k model_a sae_a? site_a depth_a model_b sae_b? site_b depth_b buddies r_p50?",
    "rosetta_entries": "stage entry origin models size model sae? unit_kind site unit mean_r? is_representative shares_training?",
    "rosetta_exemplars": "stage entry rank image_id image_index uri score model sae? unit_kind site unit peak grid_h grid_w map",
    "rosetta_inversions": "stage model image_id image_index uri start edit? space pairs steps loss act_sim pixel_loss latent psnr? ssim? "
    "lpips? act_sim_before act_sim_after is_best picture",
    "explanations": "stage model site sae feature vlm method masking direction positions alpha_asked alpha_unit sequence alpha "
        "strength alpha_rel realised? k_eff full_masks image_ids seed? text? raw_text? n_tokens mean_logprob? status "
        "prompt_sha256? is_validation",
    "explanation_alphas": "stage model site sae vlm method masking direction positions alpha_asked alpha_unit alpha mean_iou? sd_iou? "
        "distinct n n_empty is_chosen",
    "explanation_iou": "stage model site sae feature vlm method masking direction positions alpha_asked alpha_unit sequence image_id "
        "image_index iou precision recall n_masks",
    "explanation_clip": "stage model site sae feature vlm method masking direction positions alpha_asked alpha_unit sequence image_id "
        "image_index clip cosine is_truncated",
    "explanation_synthetic": "stage model site sae feature vlm? method? masking? direction? positions? alpha_asked? alpha_unit? sequence? "
        "number is_positive image_index? seed? mean max is_black",
    "explanation_naming": "stage model site sae feature vlm method masking direction positions alpha_asked alpha_unit sequence concept "
        "auroc level named share_named",
    "explanation_scores": "stage model site sae feature vlm method masking direction positions alpha_asked alpha_unit sequence alpha "
        "status text? iou? clip? synthetic? auroc? named? abstraction? context?",
    "explanation_summary": "stage model site sae vlm method masking direction positions alpha_asked alpha_unit metric value? sd? low? "
        "high? n n_empty is_candidate",
    "explanation_tests": "stage model site sae vlm masking metric method_a method_b test statistic? p? p_holm? n",
    "explanation_agreement": "stage model site sae vlm masking method metric threshold value? n",
    "selected_explanations": "stage model site sae feature vlm method masking direction positions alpha_asked alpha_unit sequence vote text "
        "mean_rank is_tie n_methods iou? clip? synthetic? passed abstraction? context?",
    "explanation_map": "stage model site sae feature vlm method masking direction positions alpha_asked alpha_unit sequence text "
        "encoder encoder_revision? cluster x y embedding",
    "explanation_clusters": "stage model site sae cluster topic size sample sample_texts",
    "explorer_features": "stage model site sae? unit_kind unit figures histogram? names concepts texts partners neighbours images "
        "thumbnails? cover? maps? map_h? map_w? map_most?",
    "explorer_index": "stage model site sae? unit_kind unit name? name_score? text? text_iou? concept? auroc? words images_active? "
        "density? largest? monosemanticity? partners best_r? x? y? topic?",
    "drift": "stage cell subject subject_before aspect source item setting status before? after? feature_before? feature_after? "
        "similarity?",
    "selftest": "stage row value vector",
    "selftest_summary": "stage rows total",
}  # fmt: skip
TYPES = {
    "string": {"stage", "model", "site", "image_id", "uri", "sha256"},
    "int64": {"image_index", "bytes", "n", "parameters", "flops", "row", "rows"},
    "int32": {"unit", "rank", "token", "class_id", "text_id"},
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_and_their_order_are_frozen(name: str) -> None:
    found = " ".join(c.name + "?" * c.nullable for c in TABLES[name].columns)
    assert found == COLUMNS[name]


def test_every_table_is_frozen_here() -> None:
    assert set(TABLES) == set(COLUMNS)


def test_all_types_together_are_frozen() -> None:
    types = {name: [str(field) for field in table.schema] for name, table in TABLES.items()}
    assert digest(types) == "6021e1b3e9947ba0f19d"


@pytest.mark.parametrize("kind", TYPES)
def test_a_column_name_has_one_type_in_every_table(kind: str) -> None:
    for table in TABLES.values():
        for column in table.columns:
            if column.name in TYPES[kind]:
                assert str(column.type) == kind, f"{table.name}.{column.name}"


def test_integers_are_signed_and_vectors_are_lists_of_float32_without_nulls() -> None:
    for table in TABLES.values():
        for column in table.columns:
            assert not pa.types.is_unsigned_integer(column.type)
            assert not pa.types.is_fixed_size_list(column.type) and column.type != pa.float16()
            if column.name in ("act", "embedding", "vector"):
                assert column.type == VECTOR and not column.nullable and not column.type.value_field.nullable
    assert TABLES["images"].schema.field("attributes").type == ATTRIBUTES


def test_no_table_holds_runs_times_hosts_or_attempts() -> None:
    for table in TABLES.values():
        assert not {"run", "time", "host", "duration", "attempt", "worker"} & set(table.schema.names)


def test_every_table_names_its_stage_and_says_what_a_row_and_a_column_are() -> None:
    for table in TABLES.values():
        assert table.columns[0].name == "stage" and table.row
        assert all(column.meaning for column in table.columns)


def test_an_unknown_table_is_refused_with_the_list() -> None:
    with pytest.raises(UnknownTable, match="there are models, images"):
        get_table("activation")
