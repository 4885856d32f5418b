// Progress messages of the commands.

/** The step whose line is still open, so that its time can be added to that line. */
let openLine: symbol | undefined

/** Prints a line, below the line of the current step. */
export function say(line: string) {
  process.stdout.write(`${openLine ? '\n' : ''}${line}\n`)
  openLine = undefined
}

/**
 * Prints what is being done, then dots while it lasts, then the time it took. If other lines come in between, the time gets its
 * own line.
 */
export async function step<T>(what: string, work: () => Promise<T>): Promise<T> {
  const started = performance.now()
  const line = Symbol(what)
  const end = (time: string) => {
    if (openLine !== line) return say(`${what}: ${time}`)
    openLine = undefined
    process.stdout.write(` ${time}\n`)
  }
  process.stdout.write(`${openLine ? '\n' : ''}${what} ...`)
  openLine = line
  const dots = setInterval(() => {
    if (openLine === line) process.stdout.write('.')
  }, 2000)
  try {
    const result = await work()
    end(elapsed(started))
    return result
  } catch (error) {
    end(`failed after ${elapsed(started)}`)
    throw error
  } finally {
    clearInterval(dots)
  }
}

/** The seconds since a performance.now(), as text. */
export function elapsed(started: number) {
  return `${((performance.now() - started) / 1000).toFixed(1)} s`
}
