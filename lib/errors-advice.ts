// What to do about a refusal of the system, by the name of its errno: the last clause of a `BlockError` that has no reason of its own.
// Who knows better says so where the error is made.

const LOOK = 'the kernel log (dmesg) may tell more'
const GONE = 'the device is gone: connect it again and open it anew'
const MEDIUM = "look at the kernel log (dmesg), and don't trust the medium or its connection"
const MAY = 'you may have to be root, or of the group that owns it'
const LOOK_AT_PATH = 'check the path'

const ADVICE: Readonly<Record<string, string>> = {
  EACCES: MAY,
  EAGAIN: 'the system is short of resources: try again, or use a smaller queueDepth',
  EBADMSG: MEDIUM,
  EBUSY: 'close or unmount what uses it',
  EDQUOT: 'make room, or have the quota raised',
  EFAULT: 'leave the memory of a request alone until it is answered',
  EFBIG: 'the file system or "ulimit -f" allows no larger file: take another place',
  EILSEQ: MEDIUM,
  EINVAL: 'the device or file system does not take this: compare it with disk.limits',
  EIO: MEDIUM,
  EISDIR: 'name a block device or a file',
  ELOOP: LOOK_AT_PATH,
  EMFILE: 'close devices, or raise the limit on open files (ulimit -n)',
  ENAMETOOLONG: LOOK_AT_PATH,
  ENFILE: 'the whole system has too many open files: close some, or raise sysctl fs.file-max',
  ENODATA: MEDIUM,
  ENODEV: GONE,
  ENOENT: LOOK_AT_PATH,
  ENOMEDIUM: 'insert a medium and open it anew',
  ENOMEM: 'free memory, or use a smaller queueDepth',
  ENOSPC: 'make room on what it lies on, or take another place',
  ENOTDIR: LOOK_AT_PATH,
  ENXIO: GONE,
  EOPNOTSUPP: 'do without, or take a device or file system that supports it',
  EPERM: MAY,
  EREMOTEIO: MEDIUM,
  EROFS: 'pass readOnly: true to read it, or make writable what it lies on',
  ETIMEDOUT: MEDIUM,
  ETXTBSY: 'it is being run as a program: stop that, or take another file',
}

/** @param code such as `EIO` */
export function adviceOn(code: string): string {
  return ADVICE[code] ?? LOOK
}
