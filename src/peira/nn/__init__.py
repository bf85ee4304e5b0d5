"""Blocks that several papers share."""

from peira.engine.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "calibration": [
            "Reliability",
            "brier_score",
            "calibration_report",
            "expected_calibration_error",
            "fit_temperature",
            "maximum_calibration_error",
            "negative_log_likelihood",
            "reliability",
        ],
        "costs": ["Cost", "cost", "flops", "unit_flops"],
        "ensembles": ["Ensemble"],
        "evaluation": ["accuracy", "cross_entropies", "evaluating", "predict", "sample_losses"],
        "grokfast": ["GrokfastEMA"],
        "hooks": ["capture", "module_named", "replace_output"],
        "networks": ["BasicBlock", "TinyGPT", "cifar_resnet", "mlp", "small_cnn"],
        "pruning": ["Mask", "apply_masks", "keep_top", "magnitude_mask", "remove_masks"],
        "saved_tensors": ["SavedTensors"],
        "structured": ["residual_blocks", "slim"],
    },
)
