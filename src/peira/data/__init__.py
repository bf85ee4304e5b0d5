"""Readers of the fields' official formats, checked, and where the data sets come from."""

from peira.engine.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "errors": ["DataError", "MissingData"],
        "images": [
            "digit_pictures",
            "digits",
            "mnist",
            "mnist_pictures",
            "picture_split",
            "picture_tensors",
            "read_cifar",
            "read_idx",
        ],
        "labels": ["GaussianClasses", "flip_labels"],
        "picture_sets": ["crop_and_flip", "official_paths", "official_pictures"],
        "pictures": ["labelled_pictures", "read_pictures"],
        "hypergraph": ["TemporalHypergraph"],
        "modular": ["Split", "modular_table", "split_table"],
        "planetoid": ["AttributedGraph", "read_gnn_npz", "read_planetoid"],
        "temporal": [
            "TemporalEdges",
            "read_edge_table",
            "read_jodie",
            "read_processed",
            "read_snap",
            "read_temporal",
        ],
        "arrays": [
            "read_features",
            "read_npy",
            "read_npz",
            "read_record",
            "read_tensors",
            "write_record",
            "write_tensors",
        ],
        "models": ["load_model", "save_model"],
        "networks": ["load_weights", "own_module"],
        "sources": ["fingerprint", "locate"],
        "tables": ["read_table", "write_table"],
    },
)
