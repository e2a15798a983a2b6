// The few libuv functions that the addon calls, declared here.
//
// libuv keeps its ABI within major version 1, and these functions work on handles of unknown layout
// (uv_handle_size tells how much to allocate). So the addon needs no uv.h, which cmake-js does not
// have in Node-API mode.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {
struct uv_loop_s;
typedef struct uv_handle_s uv_handle_t;
typedef struct uv_poll_s uv_poll_t;
typedef struct uv_prepare_s uv_prepare_t;
typedef struct uv_idle_s uv_idle_t;
typedef struct uv_timer_s uv_timer_t;

typedef void (*uv_close_cb)(uv_handle_t* handle);
typedef void (*uv_prepare_cb)(uv_prepare_t* handle);
typedef void (*uv_idle_cb)(uv_idle_t* handle);
typedef void (*uv_timer_cb)(uv_timer_t* handle);
typedef void (*uv_poll_cb)(uv_poll_t* handle, int status, int events);

size_t uv_handle_size(int type);
void uv_handle_set_data(uv_handle_t* handle, void* data);
void* uv_handle_get_data(const uv_handle_t* handle);
void uv_ref(uv_handle_t* handle);
void uv_unref(uv_handle_t* handle);
void uv_close(uv_handle_t* handle, uv_close_cb close_cb);
int uv_poll_init(uv_loop_s* loop, uv_poll_t* handle, int fd);
int uv_poll_start(uv_poll_t* handle, int events, uv_poll_cb cb);
int uv_poll_stop(uv_poll_t* handle);
int uv_prepare_init(uv_loop_s* loop, uv_prepare_t* handle);
int uv_prepare_start(uv_prepare_t* handle, uv_prepare_cb cb);
int uv_idle_init(uv_loop_s* loop, uv_idle_t* handle);
int uv_idle_start(uv_idle_t* handle, uv_idle_cb cb);
int uv_idle_stop(uv_idle_t* handle);
int uv_timer_init(uv_loop_s* loop, uv_timer_t* handle);
int uv_timer_start(uv_timer_t* handle, uv_timer_cb cb, uint64_t timeout, uint64_t repeat);
}

namespace multiwrite {
// uv_handle_type and uv_poll_event of libuv 1.x.
constexpr int kUvIdle = 6;
constexpr int kUvPoll = 8;
constexpr int kUvPrepare = 9;
constexpr int kUvTimer = 13;
constexpr int kUvReadable = 1;
}  // namespace multiwrite
