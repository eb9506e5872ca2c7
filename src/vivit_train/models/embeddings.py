"""What a model knows about a clip before its head: one vector per clip, per frame or per token.

Shape suffixes as in models/vivit.py.
"""

from typing import Literal

from torch import Tensor

from vivit_train.models.vivit import ViViT
from vivit_train.utils.errors import UserError

Level = Literal["clip", "frame", "token"]


def embeddings(net: ViViT, video_BCTHW: Tensor, level: Level) -> Tensor:
    """Returns the embeddings of normalized clips.

    Args:
        net: The model.
        video_BCTHW: The clips.
        level: "clip" is the input of the head, [B, D]. "frame" has a vector for each time index, [B, t, D]: in
            vivit_fe the output of the spatial encoder, in the other models the mean of the tokens of that time.
            "token" has the output tokens of the (spatial) encoder, [B, t, rows, columns, D], without class and
            register tokens.

    Raises:
        UserError: The model is a subclass whose tokens have another arrangement.
    """
    if level == "clip":
        return net.features(video_BCTHW)
    net.check_input(video_BCTHW)
    x_BtnD, axes = net.embedding(video_BCTHW), net.layout.encoders.get("encoder")
    if axes not in (("thw",), ("hw",), ("t", "hw")):
        raise UserError(f"{net.model} arranges its tokens by {axes}: it has only embeddings of clips")
    if axes == ("hw",) and level == "frame":
        frames_BtD: Tensor = net.encoder(x_BtnD)
        return frames_BtD
    tokens = net.encoder.tokens(x_BtnD.flatten(1, 2) if axes == ("thw",) else x_BtnD)
    t, rows, columns = net.grid
    first = int(net.encoder.cls_token is not None)
    count = rows * columns * (t if axes == ("thw",) else 1)
    tokens_BtnD = tokens[..., first : first + count, :].reshape(x_BtnD.shape)
    if level == "token":
        return tokens_BtnD.unflatten(2, (rows, columns))
    mean_BtD = tokens_BtnD.mean(2)
    return net.encoder.norm(mean_BtD) if net.fc_norm else mean_BtD
