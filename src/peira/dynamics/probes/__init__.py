"""Probes of networks, on any module and inside any training loop; shared by the room's papers."""

from peira.engine.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "alignment": [
            "kernel_alignment",
            "kernel_change",
            "kernel_task_alignment",
            "representation_alignment",
            "sign_similarity",
        ],
        "curvature": [
            "BatchSpectra",
            "Extremes",
            "Operator",
            "SpectralDensity",
            "batch_operators",
            "batch_spectra",
            "extreme_eigenvalues",
            "ggn_operator",
            "gradient_moments",
            "hessian_operator",
            "lanczos",
            "sharpness",
            "spectral_density",
        ],
        "forecast": [
            "EarlyStop",
            "EnsembleForecast",
            "Forecast",
            "early_stop_time",
            "ensemble_forecast",
            "mode_times",
            "modes",
            "training_forecast",
        ],
        "infinite": [
            "InfiniteKernels",
            "kernel_blocks",
            "kernels",
            "leaky_relu",
            "numerical",
            "polynomial",
            "variances",
        ],
        "change": ["Laziness", "LazinessTracker", "activity", "laziness"],
        "scaling": ["NTKLinear", "ScaledOutput", "learning_rate_scale", "mlp"],
        "tangent": ["LinearisedModel", "empirical_ntk", "jacobian", "ntk_operator"],
        "weights": [
            "effective_rank",
            "layer_changes",
            "relative_weight_change",
            "weight_change",
        ],
    },
)
