{
  "target_defaults": {
    "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
    "defines": [
      "NAPI_VERSION=8",
      "NAPI_DISABLE_CPP_EXCEPTIONS",
      "NODE_API_NO_EXTERNAL_BUFFERS_ALLOWED",
      "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"
    ],
    "cflags": ["-Wall", "-Wextra", "-Wconversion", "-fvisibility=hidden"],
    "cflags_cc!": ["-fno-rtti", "-std=gnu++17"],
    "cflags_cc": ["-std=c++17", "-fno-exceptions", "-fno-rtti"],
    "ldflags": ["-Wl,-z,nodelete", "-Wl,-Bsymbolic", "-Wl,--exclude-libs,ALL"]
  },
  "variables": {
    "multiwrite_sources": [
      "native/addon.cc",
      "native/aio.cc",
      "native/env.cc",
      "native/faults.cc",
      "native/file.cc",
      "native/threads.cc",
      "native/uring.cc",
      "native/uring_buffers.cc"
    ]
  },
  "conditions": [
    [
      "OS=='linux'",
      {
        "targets": [
          { "target_name": "multiwrite", "sources": ["<@(multiwrite_sources)"] },
          {
            "target_name": "multiwrite_faults",
            "sources": ["<@(multiwrite_sources)"],
            "defines": ["MULTIWRITE_FAULTS"]
          }
        ]
      },
      { "targets": [{ "target_name": "multiwrite", "type": "none" }] }
    ]
  ]
}
