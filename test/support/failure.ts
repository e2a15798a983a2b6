// What a promise rejects with.

/** The error; throws if there is none. */
export async function failure(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => {
      throw new Error('resolved')
    },
    (error: unknown) => error,
  )
}
