// A host for the addon where there is no Node: just enough of Node-API and libuv to load it, open a file,
// write to it by one engine and read it back. Compiled with musl-gcc it shows that the prebuilt binary
// finds all it needs beside musl, threads included; the loader is musl's own.
//
//   musl-gcc -rdynamic -I node_modules/node-api-headers/include test/native/musl_host.c -o host
//   ./host ADDON FILE ENGINE        ENGINE: 0 io_uring, 1 aio, 2 threads
//
// Values live for ever, handles are addresses of values. What the addon asks for and this host lacks is
// missing when it is loaded, since it binds all names at once: that fails the test, as it should.
#include <dlfcn.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NAPI_VERSION 8
#include <node_api.h>

#define FILE_BYTES 65536
#define O_READ_WRITE 2
// A slot for each two of them; a ring wants as many as it takes requests at once.
#define RESULT_NUMBERS 1024

struct napi_value__ {
  napi_valuetype type;
  double number;
  const char* text;
  void* data;
  size_t length;
  napi_typedarray_type array;
  napi_callback callback;
  void* callback_data;
  struct property {
    const char* name;
    napi_value value;
  } properties[32];
  size_t property_count;
};

struct napi_callback_info__ {
  napi_value receiver;
  size_t argc;
  napi_value* argv;
  void* data;
};

struct napi_async_work__ {
  napi_async_execute_callback execute;
  napi_async_complete_callback complete;
  void* data;
};

static struct napi_value__ undefined_value = {.type = napi_undefined};
static void* instance_data;
static napi_value last_result;  // what the addon passed to the function that it called last

static void Fail(const char* what) {
  fprintf(stderr, "failed: %s\n", what);
  exit(1);
}

static napi_value New(napi_valuetype type) {
  napi_value value = calloc(1, sizeof *value);
  if (!value) Fail("memory");
  value->type = type;
  return value;
}

static napi_value Number(double number) {
  napi_value value = New(napi_number);
  value->number = number;
  return value;
}

static napi_value Array(napi_typedarray_type type, void* data, size_t length) {
  napi_value value = New(napi_object);
  value->array = type;
  value->data = data;
  value->length = length;
  return value;
}

static napi_value Get(napi_value object, const char* name) {
  for (size_t i = 0; i < object->property_count; i++) {
    if (strcmp(object->properties[i].name, name) == 0) return object->properties[i].value;
  }
  return NULL;
}

static void Set(napi_value object, const char* name, napi_value value) {
  object->properties[object->property_count].name = strdup(name);
  object->properties[object->property_count++].value = value;
}

// The environment has no state of its own; any address will do.
#define ENV ((napi_env)&undefined_value)
#define NAPI(name, ...) napi_status name(napi_env env, __VA_ARGS__)

NAPI(napi_get_undefined, napi_value* out) { return *out = &undefined_value, napi_ok; }
NAPI(napi_create_double, double number, napi_value* out) { return *out = Number(number), napi_ok; }
NAPI(napi_create_uint32, uint32_t number, napi_value* out) { return *out = Number(number), napi_ok; }
NAPI(napi_get_boolean, bool flag, napi_value* out) { return *out = Number(flag), napi_ok; }
NAPI(napi_create_object, napi_value* out) { return *out = New(napi_object), napi_ok; }
NAPI(napi_create_string_utf8, const char* text, size_t length, napi_value* out) {
  *out = New(napi_string);
  (*out)->text = length == NAPI_AUTO_LENGTH ? strdup(text) : strndup(text, length);
  return napi_ok;
}
NAPI(napi_typeof, napi_value value, napi_valuetype* out) { return *out = value->type, napi_ok; }
NAPI(napi_get_value_int32, napi_value value, int32_t* out) { return *out = (int32_t)value->number, napi_ok; }
NAPI(napi_get_value_int64, napi_value value, int64_t* out) { return *out = (int64_t)value->number, napi_ok; }
NAPI(napi_get_value_string_utf8, napi_value value, char* buffer, size_t size, size_t* length) {
  if (value->type != napi_string) return napi_string_expected;
  if (buffer) snprintf(buffer, size, "%s", value->text);
  *length = strlen(value->text);
  return napi_ok;
}
NAPI(napi_is_typedarray, napi_value value, bool* out) { return *out = value->data != NULL, napi_ok; }
NAPI(napi_get_typedarray_info, napi_value value, napi_typedarray_type* type, size_t* length, void** data,
     napi_value* buffer, size_t* offset) {
  if (type) *type = value->array;
  if (length) *length = value->length;
  if (data) *data = value->data;
  return napi_ok;
}
NAPI(napi_set_named_property, napi_value object, const char* name, napi_value value) {
  return Set(object, name, value), napi_ok;
}
NAPI(napi_define_properties, napi_value object, size_t count, const napi_property_descriptor* properties) {
  for (size_t i = 0; i < count; i++) {
    napi_value value = properties[i].value;
    if (properties[i].method) {
      value = New(napi_function);
      value->callback = properties[i].method;
      value->callback_data = properties[i].data;
    }
    if (value) Set(object, properties[i].utf8name ? properties[i].utf8name : properties[i].name->text, value);
  }
  return napi_ok;
}
NAPI(napi_get_cb_info, napi_callback_info info, size_t* argc, napi_value* argv, napi_value* receiver, void** data) {
  if (argv) {
    for (size_t i = 0; i < *argc; i++) argv[i] = i < info->argc ? info->argv[i] : &undefined_value;
  }
  if (argc) *argc = info->argc;
  if (receiver) *receiver = info->receiver;
  if (data) *data = info->data;
  return napi_ok;
}
NAPI(napi_set_instance_data, void* data, napi_finalize finalize, void* hint) { return instance_data = data, napi_ok; }
NAPI(napi_get_instance_data, void** out) { return *out = instance_data, napi_ok; }
NAPI(napi_create_reference, napi_value value, uint32_t count, napi_ref* out) { return *out = (napi_ref)value, napi_ok; }
NAPI(napi_get_reference_value, napi_ref reference, napi_value* out) { return *out = (napi_value)reference, napi_ok; }
NAPI(napi_delete_reference, napi_ref reference) { return napi_ok; }
NAPI(napi_open_handle_scope, napi_handle_scope* out) { return *out = NULL, napi_ok; }
NAPI(napi_close_handle_scope, napi_handle_scope scope) { return napi_ok; }
NAPI(napi_async_init, napi_value resource, napi_value name, napi_async_context* out) { return *out = NULL, napi_ok; }
NAPI(napi_async_destroy, napi_async_context context) { return napi_ok; }
NAPI(napi_adjust_external_memory, int64_t change, int64_t* out) { return *out = 0, napi_ok; }
NAPI(napi_is_exception_pending, bool* out) { return *out = false, napi_ok; }
NAPI(napi_throw_error, const char* code, const char* message) { return Fail(message), napi_ok; }
NAPI(napi_call_function, napi_value receiver, napi_value function, size_t argc, const napi_value* argv, napi_value* out) {
  last_result = argv[0];
  return napi_ok;
}
NAPI(napi_make_callback, napi_async_context context, napi_value receiver, napi_value function, size_t argc,
     const napi_value* argv, napi_value* out) {
  last_result = argv[0];
  return napi_ok;
}
NAPI(napi_create_async_work, napi_value resource, napi_value name, napi_async_execute_callback execute,
     napi_async_complete_callback complete, void* data, napi_async_work* out) {
  *out = malloc(sizeof **out);
  **out = (struct napi_async_work__){execute, complete, data};
  return napi_ok;
}
NAPI(napi_queue_async_work, napi_async_work work) {
  work->execute(env, work->data);
  work->complete(env, napi_ok, work->data);
  return napi_ok;
}
NAPI(napi_delete_async_work, napi_async_work work) { return napi_ok; }
NAPI(napi_get_uv_event_loop, struct uv_loop_s** out) { return *out = NULL, napi_ok; }
napi_status napi_add_async_cleanup_hook(napi_env env, napi_async_cleanup_hook hook, void* data,
                                        napi_async_cleanup_hook_handle* out) {
  return *out = NULL, napi_ok;
}
napi_status napi_remove_async_cleanup_hook(napi_async_cleanup_hook_handle handle) { return napi_ok; }

// Never reached by a correct run. Named for the linker only: their true types do not matter.
#define UNREACHED(name)                         \
  void unreached_##name(void) __asm__(#name); \
  void unreached_##name(void) { Fail(#name " was called"); }
UNREACHED(napi_get_property)
UNREACHED(napi_has_property)
UNREACHED(napi_get_element)
UNREACHED(napi_create_error)
UNREACHED(napi_create_type_error)
UNREACHED(napi_throw)
UNREACHED(napi_get_last_error_info)
UNREACHED(napi_get_and_clear_last_exception)
UNREACHED(napi_fatal_exception)
UNREACHED(napi_fatal_error)
UNREACHED(napi_add_finalizer)
UNREACHED(uv_prepare_init)
UNREACHED(uv_prepare_start)
UNREACHED(uv_idle_init)
UNREACHED(uv_idle_start)
UNREACHED(uv_idle_stop)

// One descriptor to poll is all that libuv is asked for.
struct handle {
  void* data;
  int fd;
  void (*ready)(void* handle, int status, int events);
};
static struct handle* polled;
size_t uv_handle_size(int type) { return sizeof(struct handle); }
void uv_handle_set_data(struct handle* handle, void* data) { handle->data = data; }
void* uv_handle_get_data(const struct handle* handle) { return handle->data; }
void uv_ref(struct handle* handle) {}
void uv_unref(struct handle* handle) {}
void uv_close(struct handle* handle, void (*done)(void*)) {}
int uv_poll_stop(struct handle* handle) { return 0; }
int uv_poll_init(void* loop, struct handle* handle, int fd) { return polled = handle, handle->fd = fd, 0; }
int uv_poll_start(struct handle* handle, int events, void (*ready)(void*, int, int)) {
  return handle->ready = ready, 0;
}

static napi_value addon;

static napi_value Call(const char* name, size_t argc, napi_value* argv) {
  napi_value method = Get(addon, name);
  if (!method) Fail(name);
  struct napi_callback_info__ info = {addon, argc, argv, method->callback_data};
  napi_value result = method->callback(ENV, &info);
  return result ? result : &undefined_value;
}

// Sends one request and waits for it; returns its result.
static double Submit(double* requests, double* vectors, double* results, double op, double file, double region) {
  double request[] = {op, 0, file, 0, 0, 1, 0};
  double vector[] = {region, 0, FILE_BYTES};
  memcpy(requests, request, sizeof request);
  memcpy(vectors, vector, sizeof vector);
  last_result = NULL;
  if (Call("submit", 2, (napi_value[]){Number(1), &undefined_value})->number == 0) {
    while (!last_result) {
      struct pollfd event = {polled->fd, POLLIN, 0};
      if (poll(&event, 1, 10000) != 1) Fail("nothing came of a request");
      polled->ready(polled, 0, 1);
    }
  }
  return results[1];
}

int main(int argc, char** argv) {
  if (argc != 4) Fail("usage: host ADDON FILE ENGINE");
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) Fail(dlerror());
  napi_value (*entry)(napi_env, napi_value) =
      (napi_value(*)(napi_env, napi_value))dlsym(library, "napi_register_module_v1");
  if (!entry) Fail("no entry");
  napi_value exports = New(napi_object);
  addon = entry(ENV, exports);
  if (!addon) addon = exports;

  double* requests = calloc(70, sizeof(double));
  double* vectors = calloc(30, sizeof(double));
  double* results = calloc(RESULT_NUMBERS, sizeof(double));
  napi_value drained = New(napi_function);
  Call("attach", 5,
       (napi_value[]){Array(napi_float64_array, requests, 70), Array(napi_float64_array, vectors, 30),
                      Array(napi_float64_array, results, RESULT_NUMBERS), drained, Get(Get(addon, "layout"), "version")});
  napi_value engine = Number(atoi(argv[3]));
  napi_value failure = Call("startEngine", 1, &engine);
  if (failure->type != napi_undefined) Fail("the engine does not start");

  napi_value path;
  napi_create_string_utf8(ENV, argv[2], NAPI_AUTO_LENGTH, &path);
  Call("open", 4, (napi_value[]){path, Number(O_READ_WRITE), engine, drained});
  napi_value file = Get(last_result, "file");
  if (!file) Fail("the file does not open");
  if (Get(last_result, "size")->number != FILE_BYTES) Fail("the size is wrong");

  uint8_t* out = malloc(FILE_BYTES);
  uint8_t* in = calloc(1, FILE_BYTES);
  for (size_t i = 0; i < FILE_BYTES; i++) out[i] = (uint8_t)(i * 31 + (i >> 8));
  napi_value to_write = Array(napi_uint8_array, out, FILE_BYTES);
  napi_value to_read = Array(napi_uint8_array, in, FILE_BYTES);
  double written = Submit(requests, vectors, results, 1, file->number, Call("addRegion", 1, &to_write)->number);
  if (written != FILE_BYTES) Fail("a write ends short");
  double read = Submit(requests, vectors, results, 0, file->number, Call("addRegion", 1, &to_read)->number);
  if (read != FILE_BYTES || memcmp(in, out, FILE_BYTES) != 0) Fail("a read finds something else");
  Call("close", 2, (napi_value[]){file, drained});
  if (Get(last_result, "errno")->number != 0) Fail("the file does not close");
  puts("written and read back");
  return 0;
}
