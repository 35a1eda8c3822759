"""ResNet v1.5 (He et al. 2016, arXiv:1512.03385; the stride on a bottleneck's 3x3 convolution).

Shapes: N images of a batch, H and W their sides, C channels. All tensors are NHWC; TensorFlow turns
them around where a GPU is faster with NCHW.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf
from keras import layers

BATCH_NORM_DECAY = 0.9
BATCH_NORM_EPSILON = 1e-5


class BatchNormalization(layers.Layer):
    """Batch normalisation by TensorFlow's fused kernel: [N, H, W, C] -> [N, H, W, C].

    Keras's own keeps the biased variance of a batch; this one, as TensorFlow 1 and PyTorch, the
    unbiased. With several replicas each normalises by its own images; of their running statistics
    the first replica's count.
    """

    def build(self, input_shape: Sequence[int]) -> None:
        """Make scale, offset and the running mean and variance, [C] float32 each."""
        self.scale = self._variable("scale", "ones", input_shape[-1], trainable=True)
        self.offset = self._variable("offset", "zeros", input_shape[-1], trainable=True)
        self.running_mean = self._variable("running_mean", "zeros", input_shape[-1])
        self.running_variance = self._variable("running_variance", "ones", input_shape[-1])

    def _variable(
        self, name: str, initializer: str, num_channels: int, trainable: bool = False
    ) -> keras.Variable:
        statistic = {"aggregation": "only_first_replica", "synchronization": "on_read"}
        return keras.Variable(
            initializer,
            (num_channels,),
            "float32",
            name=name,
            trainable=trainable,
            autocast=False,  # the kernel takes float32 statistics beside 16-bit images
            **({} if trainable else statistic),
        )

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Normalise by the batch in training, by the running statistics otherwise."""
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.scale,
            offset=self.offset,
            mean=self.running_mean,
            variance=self.running_variance,
            epsilon=BATCH_NORM_EPSILON,
            exponential_avg_factor=1 - BATCH_NORM_DECAY if training else 1.0,
            is_training=training,
        )
        if training:
            self.running_mean.assign(mean)
            self.running_variance.assign(variance)
        return outputs


def convolution(x: tf.Tensor, num_filters: int, kernel: int, stride: int) -> tf.Tensor:
    """A convolution without bias; a strided one pads both sides alike, by (kernel - 1) / 2.

    Weights start as a truncated normal of variance 1 / fan_in (v0.5: scale 1, not He's 2).
    """
    if stride > 1 and kernel > 1:
        x = layers.ZeroPadding2D((kernel - 1) // 2)(x)
    return layers.Conv2D(
        num_filters,
        kernel,
        stride,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal"),
    )(x)


def bottleneck(x: tf.Tensor, num_filters: int, stride: int, project: bool) -> tf.Tensor:
    """[N, H, W, C] -> [N, H / stride, W / stride, 4 * num_filters], added to its shortcut."""
    shortcut = x
    if project:
        shortcut = BatchNormalization()(convolution(x, 4 * num_filters, 1, stride))
    x = layers.ReLU()(BatchNormalization()(convolution(x, num_filters, 1, 1)))
    x = layers.ReLU()(BatchNormalization()(convolution(x, num_filters, 3, stride)))
    x = BatchNormalization()(convolution(x, 4 * num_filters, 1, 1))
    return layers.ReLU()(layers.Add()([x, shortcut]))


def resnet(
    num_classes: int,
    num_blocks: Sequence[int],
    num_filters: int,
    stem_kernel: int,
    stem_stride: int,
    image_size: int,
) -> keras.Model:
    """Images [N, image_size, image_size, 3] -> logits [N, num_classes] float32.

    Layers compute in Keras's global precision and keep float32 weights.
    """
    images = keras.Input((image_size, image_size, 3))
    x = convolution(images, num_filters, stem_kernel, stem_stride)
    x = layers.ReLU()(BatchNormalization()(x))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)  # pads below and to the right first
    for stage, blocks in enumerate(num_blocks):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            x = bottleneck(x, num_filters * 2**stage, stride, project=block == 0)
    x = layers.GlobalAveragePooling2D()(x)  # [N, C]
    logits = layers.Dense(num_classes)(x)  # Glorot uniform, bias zero
    return keras.Model(images, layers.Activation("linear", dtype="float32")(logits))


def is_regularized(variable: keras.Variable) -> bool:
    """Whether a trainable variable is in the L2 term: all but batch normalisation's."""
    return "batch_normalization" not in variable.path
