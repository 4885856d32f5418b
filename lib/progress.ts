// What the commands in this directory say while they work.

/** Prints one line. */
export function say(line: string) {
  process.stdout.write(`${line}\n`)
}

/** Says what is being done, with dots while it lasts and the time it took. */
export async function step<T>(what: string, work: () => Promise<T>): Promise<T> {
  const started = performance.now()
  process.stdout.write(`${what} ...`)
  const dots = setInterval(() => process.stdout.write('.'), 2000)
  try {
    const result = await work()
    process.stdout.write(` ${elapsed(started)}\n`)
    return result
  } catch (error) {
    process.stdout.write(` failed after ${elapsed(started)}\n`)
    throw error
  } finally {
    clearInterval(dots)
  }
}

/** Seconds since a performance.now(), for people. */
export function elapsed(started: number) {
  return `${((performance.now() - started) / 1000).toFixed(1)} s`
}
