"""A trained network as a file of named tensors (safetensors): codes and grids of its weights, grids of its inputs.

Of every layer NAME with a quantized weight:

* ``NAME.weight.codes``, uint8 or uint16, in the weight's shape, (O, I, kh, kw) or (O, I);
* ``NAME.weight.scale`` and ``NAME.weight.zero``, float32 (O,): the weight is ``scale * codes + zero`` along axis 0;
* ``NAME.input.scale`` and ``NAME.input.zero``, float32 (P,): what comes in is ``scale * q + zero`` with
  ``q = clamp(rne((x - zero) / scale), 0, 2**bits - 1)``; P is 1, or the number of widths that gates choose from.

Of a network of others the layers are its products, whose weights lie as those of a convolution, (O, I/groups, kh, kw);
a product of two activations has ``NAME.input`` and ``NAME.right.input``.  Its modules may use their parameters
otherwise, too, so all of them are there beside the codes.

Every other tensor of the network is there in float32 under its own name.  The metadata, all texts, has ``format``,
``recipe`` (TOML), ``layers`` (JSON: the widths of every layer) and ``inputs`` (JSON: shape, classes, normalisation).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hw.files import write_atomically
from sw_model.convert.references import is_reference
from sw_model.data.inputs import ImageInputs
from sw_model.train.recipe import ConfigError
from sw_model.trained.layer_grids import layer_grids
from sw_model.trained.trained_network import TrainedNetwork

FORMAT = "fractrain-network 1"


def write_tensors(network: TrainedNetwork, out: Path) -> int:
    """Writes the network to ``out``; returns the size in bytes.

    Raises:
        ConfigError: safetensors is not installed, or the network has other grids.
    """
    try:
        from safetensors.numpy import save
    except ModuleNotFoundError as error:
        raise ConfigError("safetensors is not installed: pip install 'fractrain-fabric[export]'") from error
    tensors = {name: x.detach().cpu().numpy() for name, x in network.model.state_dict().items()}
    layers = {}
    for name, grids in layer_grids(network).items():
        layers[name] = {
            "weight_bits": grids.weight.bits if grids.weight else 32,
            "input_bits": [g.bits for g in grids.inputs],
        }
        if grids.inputs:
            tensors[f"{name}.input.scale"] = np.stack([grid.scale for grid in grids.inputs])
            tensors[f"{name}.input.zero"] = np.stack([grid.zero for grid in grids.inputs])
        if grids.weight is not None and grids.codes is not None:
            if not is_reference(network.config.model):
                del tensors[f"{name}.weight"]
            tensors[f"{name}.weight.codes"] = grids.codes
            tensors[f"{name}.weight.scale"], tensors[f"{name}.weight.zero"] = grids.weight.scale, grids.weight.zero
    metadata = {"format": FORMAT, "recipe": network.config.to_toml(), "layers": json.dumps(layers)}
    if isinstance(network.inputs, ImageInputs):
        metadata["inputs"] = json.dumps(network.inputs.record())
    content = save({name: np.asarray(x, order="C") for name, x in tensors.items()}, metadata)
    write_atomically(out, content)
    return len(content)
