/** What was asked did not come in time. */
export class Late extends Error {}

/** The answer; what is asked goes on. @throws Late when it takes longer */
export function within<T>(ms: number, answer: Promise<T>) {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Late(`did not answer within ${ms} ms`)), ms)
  })
  return Promise.race([answer, late]).finally(() => clearTimeout(timer))
}
