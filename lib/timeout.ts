/** A promise took longer than withTimeout() allows. */
export class TimeoutError extends Error {
  override name = 'TimeoutError'
}

/**
 * Waits for a promise, but no longer than `ms`. The work behind the promise is not stopped.
 * @throws TimeoutError when it takes longer
 */
export function withTimeout<T>(ms: number, promise: Promise<T>) {
  let timer: NodeJS.Timeout | undefined
  const timeout = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new TimeoutError(`did not answer within ${ms} ms`)), ms)
  })
  return Promise.race([promise, timeout]).finally(() => clearTimeout(timer))
}
