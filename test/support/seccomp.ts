// A command that may not make certain system calls, as under a container's seccomp profile: they are answered with EPERM.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { temporaryDirectory } from './targets.ts'

/** Numbers of system calls. Those of io_uring are the same everywhere. */
export const numberOf = {
  io_uring: [425, 426, 427],
  io_setup: process.arch === 'arm64' ? [0] : [206],
} as const

const source = `
  #include <errno.h>
  #include <linux/filter.h>
  #include <linux/seccomp.h>
  #include <stddef.h>
  #include <stdio.h>
  #include <stdlib.h>
  #include <string.h>
  #include <sys/prctl.h>
  #include <unistd.h>

  // refuse 425 426 -- command arguments
  int main(int count, char** words) {
    struct sock_filter filter[64];
    unsigned short length = 0;
    struct sock_filter load = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    struct sock_filter refuse = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    filter[length++] = load;
    int word = 1;
    for (; word < count && strcmp(words[word], "--") != 0; word++) {
      struct sock_filter is = BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)atoi(words[word]), 0, 1);
      filter[length++] = is;
      filter[length++] = refuse;
    }
    filter[length++] = allow;
    struct sock_fprog program = {length, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
      perror("prctl");
      return 99;
    }
    execvp(words[word + 1], words + word + 1);
    perror("execvp");
    return 99;
  }
`

export interface Refuser {
  /** A command line up to the command that is to be restricted. */
  wrapper(numbers: readonly number[]): string[]
  cleanup(): void
}

/** Compiles it; throws where there is no compiler, or no seccomp. */
export function refuser(): Refuser {
  const { path: directory, cleanup } = temporaryDirectory()
  try {
    const [file, program] = [path.join(directory, 'refuse.c'), path.join(directory, 'refuse')]
    fs.writeFileSync(file, source)
    execFileSync('gcc', ['-O1', '-o', program, file], { stdio: 'pipe' })
    execFileSync(program, ['--', 'true'], { stdio: 'pipe' })
    return { wrapper: (numbers) => [program, ...numbers.map(String), '--'], cleanup }
  } catch (error) {
    cleanup()
    throw error
  }
}

/** Why this cannot be had here; empty where it can. */
export const noSeccomp: string = ((): string => {
  try {
    refuser().cleanup()
    return ''
  } catch (error) {
    return `skipped: needs a C compiler and seccomp: ${String(error).trim()}`
  }
})()
