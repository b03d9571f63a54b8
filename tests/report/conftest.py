"""One realistic report, for every test of this folder."""

from __future__ import annotations

from typing import Any

import pytest

from nutlet.compression.history import LayerSize, Size, Step


def sample_report(layers: int = 21, blocks: int = 7) -> dict[str, Any]:
    """Build a report as a run over a ResNet-20 would; ``layers`` of them."""

    def size(bits: int, keep: float, sparsity: float) -> Size:
        rows = []
        for index in range(layers):
            wide = 16 * 2 ** (index // max(1, layers // 3))
            wide = max(1, int(min(wide, 64) * keep))
            values = wide * wide * 9
            name = f"layer{index // blocks + 1}.{index % blocks}.conv{index % 2 + 1}" if index < layers - 1 else "fc"
            stored = values * bits // 8 + wide * 8
            rows.append(LayerSize(name, "Conv2d", (wide, wide, 3, 3), bits, stored, sparsity, values * 256,
                                  values * bits // 8))  # fmt: skip
        total = sum(row.bytes for row in rows)
        macs = sum(row.macs for row in rows)
        parameters = sum(row.bytes * 8 // bits for row in rows)
        packed = int(total * (0.92 - 0.8 * sparsity))
        return Size(parameters, total, packed + 16, macs, int(macs * (1 - sparsity)), tuple(rows))

    steps = [
        Step({}, {}, 0.9176, size(32, 1.0, 0.0), 0.0),
        Step({"PruneChannels": {"macs": 0.6, "multiple_of": 16}}, {"kept": {}}, 0.8421, size(32, 0.75, 0.0), 12.5),
        Step({"Distill": {"epochs": 20}}, {}, 0.9103, size(32, 0.75, 0.0), 1834.0, ("kept the weights of epoch 18",)),
        Step({"PruneWeights": {"sparsity": 0.5}}, {}, 0.9088, size(32, 0.75, 0.5), 41.0, ("left fc alone: excluded",)),
        Step({"Quantize": {"bits": 8}}, {}, 0.9079, size(8, 0.75, 0.5), 3.2,
             ("carried the mask of 19 layers", "recomputed the scales of 20 layers")),
    ]  # fmt: skip

    def latency(*medians: float) -> list[dict[str, Any]]:
        settings = [(1, 1), (1, 2), (32, 1), (32, 2)]
        return [
            {"batch": batch, "threads": threads, "median_ms": ms, "p95_ms": ms * 1.18, "runs": 200}
            for (batch, threads), ms in zip(settings, medians, strict=True)
        ]

    return {
        "schema": 1,
        "nutlet": "0.1.0",
        "created": "2025-11-03T14:05:00+00:00",
        "command": "nutlet compress resnet20.pt recipe.yaml --data cifar10.npz --seed 0 --out small",
        "environment": {
            "cpu": "a processor",
            "instruction_sets": ["avx2", "avx512f", "avx512_vnni"],
            "int8_dot_product": True,
            "cores": 2,
            "python": "3.12.3",
            "versions": {"onnxruntime": "1.22.0", "torch": "2.9.0"},
            "gpu": None,
        },
        "model": {"name": "resnet20", "classes": 10, "input_shape": [3, 32, 32]},
        "data": {"name": "cifar10", "train": 45000, "validation": 5000, "calibration": 512, "test": 10000},
        "recipe": [step.method for step in steps[1:]],
        "seed": 0,
        "history": [step.to_dict() for step in steps],
        "measurement": {
            "split": "test",
            "original": {
                "path": "original.onnx", "bytes": 1_094_321, "bytes_zstd": 1_010_222, "accuracy": 0.9173,
                "accuracy_low": 0.9117, "accuracy_high": 0.9225, "examples": 10000,
                "latency": latency(1.62, 1.01, 38.2, 21.4), "peak_memory_mib": 21.2, "peak_process_mib": 71.9,
            },
            "compressed": {
                "path": "model.onnx", "bytes": 179_904, "bytes_zstd": 104_512, "accuracy": 0.9083,
                "accuracy_low": 0.9025, "accuracy_high": 0.9138, "examples": 10000,
                "latency": latency(0.44, 0.33, 15.1, 9.3), "peak_memory_mib": 12.9, "peak_process_mib": 63.6,
            },
            "accuracy_drop_pp": 0.9, "accuracy_drop_pp_low": 0.53, "accuracy_drop_pp_high": 1.27,
            "size_ratio": 6.083, "size_ratio_zstd": 9.666,
            "speedups": [{"batch": 1, "threads": 1, "ratio": 3.68, "paired": 3.70},
                         {"batch": 32, "threads": 2, "ratio": 2.3, "paired": 2.9}],
            "agreement": 0.957, "agreement_low": 0.9528, "agreement_high": 0.9608,
        },
        "parity": {"examples": 2000, "agreement": 0.996, "max_difference": 0.183},
        "warnings": ["The mask over dense zeros did not make the file smaller; zstd does."],
    }  # fmt: skip


def sample_diagnosis(layers: int = 60) -> dict[str, Any]:
    """Build what a look into a ruined step gives."""
    names = [f"a_module_with_a_long_name.stage{k // 10}.block{k % 10}.convolution" for k in range(layers)]
    return {
        "step": 1, "method": "PruneChannels", "examples": 1000,
        "accuracies": [{"name": "original", "accuracy": 0.9176}, {"name": "PruneChannels", "accuracy": 0.8421}],
        "before": 0.917, "loss": 0.31, "after": 0.842, "unquantized": None,
        "layers": [{"name": name, "accuracy": 0.85 + k / 1000, "loss": 0.6 - k / 200} for k, name in enumerate(names)],
        "sites": [{"site": f"{name}/conv2d/0", "error": k / 50, "cosine": 1 - k / 200} for k, name in enumerate(names)],
        "words": ["Step 1, PruneChannels, lost 7.6 points.", "Leave it out: `exclude: [<b>layer</b>]`."],
        "notes": ["Measured with 63 passes over 1,000 validation examples."],
    }  # fmt: skip


@pytest.fixture
def diagnosis() -> dict[str, Any]:
    return sample_diagnosis()


@pytest.fixture
def report() -> dict[str, Any]:
    return sample_report()


@pytest.fixture
def make_report() -> Any:
    return sample_report
