// Device numbers as Linux packs them for user space (gnu_dev_major of glibc), in the words by which sysfs and procfs name a device.

/**
 * @param packed as `stat` tells it
 * @returns `major:minor`
 */
export function deviceNumber(packed: number): string {
  const bits = BigInt(packed)
  const major = ((bits >> 8n) & 0xfffn) | ((bits >> 32n) & 0xfffff000n)
  const minor = (bits & 0xffn) | ((bits >> 12n) & 0xffffff00n)
  return `${major}:${minor}`
}
