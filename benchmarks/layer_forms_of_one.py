"""The settings of layers that take one tensor: see `layer_forms`."""

_FLOAT32 = "tf.image.resize computes in float32 whatever it is given"
_NO_KERNEL = "TensorFlow has no kernel for float64 on CPUs"
_FLOAT32_CONSTANTS = "Keras' own constants in it are float32"


def _interpolations(*settings):
    """Settings of each interpolation; all but "nearest" are in float32."""
    return [
        one
        if one["interpolation"] == "nearest"
        else {**one, "_rounds": _FLOAT32}
        for one in settings
    ]


def _in_float32(*settings):
    """Settings of what has no kernel for float64, on CPUs or at all."""
    return [
        {**one, "dtype": "float32", "_rounds": _NO_KERNEL} for one in settings
    ]


# Name of the layer: the kind of sample, and the settings of each form.
SETTINGS = {
    # Dense
    "Dense": ["vector", {"units": 5}, {"units": 5, "use_bias": False}],
    "EinsumDense": [
        "sequence",
        {"equation": "abc,cd->abd", "output_shape": (5, 3)},
        {
            "equation": "abc,bcd->abd",
            "output_shape": (5, 3),
            "bias_axes": "d",
        },
    ],
    # Activations as layers
    "Activation": ["vector", {"activation": "gelu"}],
    "ELU": ["vector", {}, {"alpha": 0.5}],
    "LeakyReLU": ["vector", {}, {"negative_slope": 0.1}],
    "PReLU": ["image", {}, {"shared_axes": [1, 2]}],
    "ReLU": [
        "vector",
        {},
        {"max_value": 0.5, "negative_slope": 0.1, "threshold": 0.1},
    ],
    "Softmax": ["sequence", {}, {"axis": 1}, {"axis": [1, 2]}],
    # Convolutions
    "Conv1D": [
        "sequence",
        {"filters": 3, "kernel_size": 2},
        {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"},
        {"filters": 3, "kernel_size": 2, "dilation_rate": 2},
        {"filters": 4, "kernel_size": 2, "groups": 2},
        {"filters": 3, "kernel_size": 3, "padding": "causal"},
    ],
    "Conv2D": [
        "image",
        {"filters": 2, "kernel_size": 3},
        {"filters": 2, "kernel_size": 3, "padding": "same"},
        {"filters": 2, "kernel_size": 2, "padding": "same"},
        {"filters": 2, "kernel_size": 1},
        {"filters": 2, "kernel_size": 3, "strides": 2},
        {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same"},
        {"filters": 2, "kernel_size": (2, 3), "dilation_rate": 2},
        {"filters": 3, "kernel_size": 3, "groups": 3},
        {"filters": 6, "kernel_size": 2, "groups": 3, "strides": 2},
        {"filters": 3, "kernel_size": 2, "groups": 3, "dilation_rate": 2},
    ],
    "Conv3D": [
        "volume",
        {"filters": 2, "kernel_size": 2},
        {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same"},
        {"filters": 2, "kernel_size": 2, "dilation_rate": 2},
        {"filters": 2, "kernel_size": 2, "groups": 2},
    ],
    "Conv1DTranspose": [
        "sequence",
        {"filters": 3, "kernel_size": 2},
        {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"},
    ],
    "Conv2DTranspose": [
        "image",
        {"filters": 2, "kernel_size": 3},
        {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same"},
        {
            "filters": 2,
            "kernel_size": 3,
            "strides": 2,
            "output_padding": 1,
        },
    ],
    "Conv3DTranspose": [
        "volume",
        {"filters": 2, "kernel_size": 2},
        {"filters": 2, "kernel_size": 2, "strides": 2, "padding": "same"},
    ],
    "DepthwiseConv1D": [
        "sequence",
        {"kernel_size": 2},
        {"kernel_size": 3, "depth_multiplier": 2, "padding": "same"},
        {"kernel_size": 3, "strides": 2, "padding": "same"},
    ],
    "DepthwiseConv2D": [
        "image",
        {"kernel_size": 3},
        {"kernel_size": 2, "depth_multiplier": 2, "padding": "same"},
        {"kernel_size": 3, "strides": 2, "padding": "same"},
        {"kernel_size": 2, "dilation_rate": 2},
    ],
    "SeparableConv1D": [
        "sequence",
        {"filters": 3, "kernel_size": 2},
        {"filters": 3, "kernel_size": 2, "strides": 2, "depth_multiplier": 2},
    ],
    "SeparableConv2D": [
        "image",
        {"filters": 2, "kernel_size": 3},
        {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same"},
        {"filters": 2, "kernel_size": 2, "dilation_rate": 2},
    ],
    # Pooling
    "AveragePooling1D": [
        "sequence",
        {"pool_size": 2},
        {"pool_size": 3, "strides": 1, "padding": "same"},
    ],
    "AveragePooling2D": [
        "image",
        {"pool_size": 2},
        {"pool_size": 3, "strides": 2, "padding": "same"},
        {"pool_size": 3, "strides": 1},
        {"pool_size": 2, "data_format": "channels_first"},
    ],
    "AveragePooling3D": [
        "volume",
        *_in_float32(
            {"pool_size": 2}, {"pool_size": 3, "strides": 1, "padding": "same"}
        ),
    ],
    "MaxPooling1D": [
        "sequence",
        {"pool_size": 2},
        {"pool_size": 3, "strides": 1, "padding": "same"},
    ],
    "MaxPooling2D": [
        "image",
        {"pool_size": 2},
        {"pool_size": 3, "strides": 2},
        {"pool_size": 3, "strides": 1, "padding": "same"},
        {"pool_size": 2, "padding": "same", "strides": 3},
        {"pool_size": 2, "data_format": "channels_first"},
    ],
    "MaxPooling3D": [
        "volume",
        *_in_float32(
            {"pool_size": 2}, {"pool_size": 3, "strides": 1, "padding": "same"}
        ),
    ],
    "AdaptiveAveragePooling1D": ["sequence", {"output_size": 2}],
    "AdaptiveAveragePooling2D": ["image", {"output_size": (4, 2)}],
    "AdaptiveAveragePooling3D": ["volume", *_in_float32({"output_size": 3})],
    "AdaptiveMaxPooling1D": ["sequence", {"output_size": 2}],
    "AdaptiveMaxPooling2D": ["image", {"output_size": (4, 2)}],
    "AdaptiveMaxPooling3D": ["volume", *_in_float32({"output_size": 3})],
    "GlobalAveragePooling1D": ["sequence", {}],
    "GlobalAveragePooling2D": ["image", {}, {"keepdims": True}],
    "GlobalAveragePooling3D": ["cube", {}],
    "GlobalMaxPooling1D": ["sequence", {}],
    "GlobalMaxPooling2D": ["image", {}, {"data_format": "channels_first"}],
    "GlobalMaxPooling3D": ["cube", {}],
    # Recurrent
    "ConvLSTM1D": ["image", {"filters": 2, "kernel_size": 2}],
    "ConvLSTM2D": [
        "clip",
        {"filters": 2, "kernel_size": 2},
        {
            "filters": 2,
            "kernel_size": 2,
            "padding": "same",
            "return_sequences": True,
        },
    ],
    "ConvLSTM3D": ["long clip", {"filters": 2, "kernel_size": 2}],
    "GRU": [
        "sequence",
        {"units": 3},
        {"units": 3, "return_sequences": True, "reset_after": False},
        {"units": 3, "unroll": True},
    ],
    "LSTM": [
        "sequence",
        {"units": 3},
        {"units": 3, "return_sequences": True, "go_backwards": True},
        {"units": 3, "unroll": True, "recurrent_dropout": 0.2},
    ],
    "SimpleRNN": [
        "sequence",
        {"units": 3},
        {"units": 3, "return_sequences": True, "activation": "relu"},
    ],
    # Normalisation
    "BatchNormalization": [
        "image",
        {},
        {"axis": 1},
        {"scale": False, "center": False},
        {"renorm": True},
    ],
    "GroupNormalization": [
        "image",
        {"groups": 1},
        {"groups": 3},
        {"groups": -1},
        {"groups": 2, "axis": 1},
        {"groups": 3, "scale": False, "center": False},
    ],
    "LayerNormalization": [
        "image",
        {},
        {"axis": 1},
        {"axis": [1, 2]},
        {"axis": [1, 2, 3]},
        {"scale": False, "center": False},
        {"rms_scaling": True},
    ],
    "RMSNormalization": ["image", {}],
    "UnitNormalization": ["image", {}, {"axis": [1, 2]}],
    # Shapes
    "Cropping1D": ["sequence", {"cropping": (1, 2)}],
    "Cropping2D": ["image", {"cropping": ((1, 2), (0, 1))}],
    "Cropping3D": ["volume", {"cropping": 1}],
    "Flatten": ["image", {}, {"data_format": "channels_first"}],
    "Permute": ["sequence", {"dims": (2, 1)}],
    "RepeatVector": ["vector", {"n": 3}],
    "Reshape": ["vector", {"target_shape": (3, 2)}, {"target_shape": (-1, 3)}],
    "UpSampling1D": ["sequence", {"size": 2}],
    "UpSampling2D": [
        "image",
        *_interpolations(
            {"size": (2, 1), "interpolation": "nearest"},
            {"size": 2, "interpolation": "nearest"},
            {"size": 2, "interpolation": "bilinear"},
            {"size": 2, "interpolation": "bicubic"},
            {"size": 2, "interpolation": "lanczos3"},
            {"size": 2, "interpolation": "lanczos5"},
        ),
    ],
    "UpSampling3D": ["volume", {"size": 2}],
    "ZeroPadding1D": ["sequence", {"padding": 1}],
    "ZeroPadding2D": ["image", {"padding": ((1, 2), (0, 1))}],
    "ZeroPadding3D": ["volume", {"padding": 1}],
    # Dropout and noise: the identity in inference
    "ActivityRegularization": ["vector", {"l1": 0.1, "l2": 0.1}],
    "AlphaDropout": ["vector", {"rate": 0.3}],
    "Dropout": ["vector", {"rate": 0.3}],
    "GaussianDropout": ["vector", {"rate": 0.3}],
    "GaussianNoise": ["vector", {"stddev": 0.3}],
    "Identity": ["vector", {}],
    "Masking": ["sequence", {}],
    "SpatialDropout1D": ["sequence", {"rate": 0.3}],
    "SpatialDropout2D": ["image", {"rate": 0.3}],
    "SpatialDropout3D": ["volume", {"rate": 0.3}],
    # Preprocessing and augmentation
    "AugMix": ["image", {}],
    "AutoContrast": ["image", {"value_range": (-1, 1)}],
    "CenterCrop": [
        "image",
        {"height": 3, "width": 4},
        {"height": 8, "width": 8, "_rounds": _FLOAT32},
    ],
    "CutMix": ["image", {}],
    "MixUp": ["image", {}],
    "MelSpectrogram": [
        "wave",
        {
            "fft_length": 16,
            "sequence_stride": 8,
            "sampling_rate": 100,
            "num_mel_bins": 4,
            "min_freq": 1.0,
            "dtype": "float32",
            "_rounds": _FLOAT32_CONSTANTS,
        },
    ],
    "Normalization": [
        "image",
        {"mean": [0.1, 0.2, 0.3], "variance": [0.5, 1.0, 2.0]},
        {"mean": 0.1, "variance": 0.5, "axis": None},
        {"mean": 0.1, "variance": 0.5, "axis": None, "invert": True},
    ],
    "RandAugment": ["image", {}],
    "RandomBrightness": ["image", {"factor": 0.3}],
    "RandomColorDegeneration": ["image", {"factor": 0.3}],
    "RandomColorJitter": ["image", {"brightness_factor": 0.3}],
    "RandomContrast": ["image", {"factor": 0.3}],
    # Of other sizes it does not keep what it promises of its outputs.
    "RandomCrop": ["image", {"height": 6, "width": 6}],
    "RandomElasticTransform": ["image", {}],
    "RandomErasing": ["image", {}],
    "RandomFlip": ["image", {}],
    "RandomGaussianBlur": ["image", {}],
    "RandomGrayscale": ["image", {}],
    "RandomHue": ["image", {"factor": 0.3}],
    "RandomInvert": ["image", {}],
    "RandomPerspective": ["image", {}],
    "RandomPosterization": ["image", {"factor": 3}],
    "RandomRotation": ["image", {"factor": 0.3}],
    "RandomSaturation": ["image", {"factor": 0.3}],
    "RandomSharpness": ["image", {"factor": 0.3}],
    "RandomShear": ["image", {"x_factor": 0.3}],
    "RandomTranslation": ["image", {"height_factor": 0.3, "width_factor": 0.3}],
    "RandomZoom": ["image", {"height_factor": 0.3}],
    "Rescaling": ["image", {"scale": 0.5, "offset": -0.1}],
    "Resizing": [
        "image",
        *_interpolations(
            {"height": 4, "width": 9, "interpolation": "nearest"},
            {"height": 4, "width": 9, "interpolation": "bilinear"},
            {"height": 4, "width": 9, "interpolation": "bicubic"},
            {"height": 4, "width": 9, "interpolation": "lanczos3"},
            {
                "height": 4,
                "width": 9,
                "interpolation": "bilinear",
                "antialias": True,
            },
            {
                "height": 4,
                "width": 9,
                "interpolation": "bicubic",
                "antialias": True,
            },
            {
                "height": 4,
                "width": 9,
                "interpolation": "lanczos5",
                "antialias": True,
            },
            {
                "height": 4,
                "width": 8,
                "interpolation": "bilinear",
                "crop_to_aspect_ratio": True,
            },
            {
                "height": 4,
                "width": 8,
                "interpolation": "nearest",
                "pad_to_aspect_ratio": True,
            },
        ),
    ],
    "Solarization": ["image", {"value_range": (-1, 1)}],
    "STFTSpectrogram": [
        "signal",
        {"frame_length": 16, "frame_step": 8},
        {"mode": "magnitude", "frame_length": 16, "frame_step": 8},
        {"mode": "psd", "frame_length": 16, "frame_step": 8},
        {"mode": "real", "frame_length": 16, "frame_step": 8},
    ],
}
