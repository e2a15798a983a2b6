// The thread pool alone, for the thread sanitizer: no Node, no JavaScript, nothing whose own races
// would drown ours.
//
//   g++ -std=c++17 -g -O1 -fsanitize=thread -pthread native/threads.cc test/native/threads_tsan.cc
//   -o threads_tsan
//   ./threads_tsan FILE
//
// One thread queues, polls and reaps, as an event loop does. Each slot has a block of the file to
// itself, so what a read must find is known. Ends with 0, or with 1 and the reason on standard
// error.
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "../../native/threads.h"

namespace {

using namespace multiwrite;

constexpr uint32_t kSlots = 128;
constexpr size_t kBlock = 8192;
constexpr uint32_t kOperations = 20000;
constexpr uint32_t kPools = 100;

void Require(bool condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "failed: %s\n", what);
  exit(1);
}

uint32_t Random(uint32_t below) {
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return static_cast<uint32_t>((static_cast<uint64_t>(state) * below) >> 32);
}

// What one slot does, and the memory that it does it with.
struct Lane {
  std::vector<uint8_t> memory = std::vector<uint8_t>(kBlock);
  iovec vectors[3];
  uint8_t value = 0;    // what its block of the file holds
  uint8_t writing = 0;  // and what it will hold
};

class Pool final : private CompletionSink {
 public:
  explicit Pool(int fd) : fd_(fd) {
    int error = 0;
    const char* syscall = "";
    engine_ = Threads::Create(slots_, kSlots, &error, &syscall);
    Require(engine_ != nullptr, "no pool");
    for (uint32_t i = 0; i < kSlots; i++) free_.push_back(i);
  }

  // Queues up to `count` operations and submits them.
  void Send(uint32_t count) {
    for (; count > 0 && !free_.empty(); count--) {
      uint32_t at = Random(static_cast<uint32_t>(free_.size()));
      uint32_t index = free_[at];
      free_[at] = free_.back();
      free_.pop_back();
      Queue(index);
    }
    engine_->Submit(this);
  }

  // Waits for something to end and takes it in.
  void Take() {
    pollfd event = {engine_->PollFd(), POLLIN, 0};
    Require(poll(&event, 1, 60000) == 1, "nothing ended within a minute");
    Require(engine_->Ready(), "readable, but not ready");
    engine_->Reap(this);
  }

  void Drain() {
    engine_->Drain(this);
    Require(!engine_->Ready(), "ready after a drain");
  }

  uint32_t in_flight() const { return kSlots - static_cast<uint32_t>(free_.size()); }
  uint32_t done() const { return done_; }
  uint8_t value(uint32_t index) const { return lanes_[index].value; }

 private:
  void Queue(uint32_t index) {
    Slot* slot = &slots_[index];
    Lane* lane = &lanes_[index];
    uint32_t kind = Random(16);
    slot->op = kind == 0 ? Op::kFdatasync : kind < 8 ? Op::kRead : Op::kWrite;
    slot->flags = kind == 15 ? kFlagDsync : 0;
    slot->fd = fd_;
    slot->offset = static_cast<uint64_t>(index) * kBlock;
    lane->writing = static_cast<uint8_t>(1 + Random(250));
    memset(lane->memory.data(), slot->op == Op::kWrite ? lane->writing : 0, kBlock);
    if (Random(2) == 0) {
      slot->single = {lane->memory.data(), kBlock};
      slot->vectors = &slot->single;
      slot->vector_count = 1;
    } else {
      lane->vectors[0] = {lane->memory.data(), 100};
      lane->vectors[1] = {lane->memory.data() + 100, 4000};
      lane->vectors[2] = {lane->memory.data() + 4100, kBlock - 4100};
      slot->vectors = lane->vectors;
      slot->vector_count = 3;
    }
    engine_->Queue(slot);
  }

  void Complete(Slot* slot, int64_t result) override {
    uint32_t index = static_cast<uint32_t>(slot - slots_);
    Lane* lane = &lanes_[index];
    Require(result == (slot->op == Op::kFdatasync ? 0 : static_cast<int64_t>(kBlock)), "a result");
    if (slot->op == Op::kWrite) lane->value = lane->writing;
    if (slot->op == Op::kRead) {
      for (uint8_t byte : lane->memory) Require(byte == lane->value, "what was read");
    }
    free_.push_back(index);
    done_++;
  }

  int fd_;
  Slot slots_[kSlots];
  Lane lanes_[kSlots];
  std::vector<uint32_t> free_;
  uint32_t done_ = 0;
  std::unique_ptr<Threads> engine_;
};

// Thousands of operations, then the content of the file.
void RunLong(int fd) {
  Pool pool(fd);
  while (pool.done() < kOperations) {
    pool.Send(1 + Random(40));
    pool.Take();
  }
  while (pool.in_flight() > 0) pool.Take();
  pool.Drain();
  std::vector<uint8_t> block(kBlock);
  for (uint32_t i = 0; i < kSlots; i++) {
    Require(pread(fd, block.data(), kBlock, static_cast<off_t>(i * kBlock)) == kBlock,
            "reading back");
    for (uint8_t byte : block) Require(byte == pool.value(i), "what is in the file");
  }
}

// Pools that end while they work: drained first, as an environment does, or after all is done.
void RunShort(int fd) {
  for (uint32_t i = 0; i < kPools; i++) {
    Require(ftruncate(fd, 0) == 0 && ftruncate(fd, kSlots * kBlock) == 0, "truncating");
    Pool pool(fd);
    pool.Send(Random(kSlots + 1));
    if (Random(2) == 0 && pool.in_flight() > 0) pool.Take();
    pool.Drain();
  }
}

}  // namespace

int main(int argc, char** argv) {
  Require(argc == 2, "the name of a file is wanted");
  int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  Require(fd >= 0 && ftruncate(fd, kSlots * kBlock) == 0, "no file");
  RunLong(fd);
  RunShort(fd);
  close(fd);
  printf("done\n");
  return 0;
}
