/** The command was called with wrong arguments. The process prints the message and ends with exit code 2. */
export class UsageError extends Error {
  override name = 'UsageError'
}

/** The settings cannot be used. The message names every variable at fault, one line each; the exit code is 2. */
export class SettingsError extends UsageError {
  override name = 'SettingsError'

  constructor(readonly problems: string[]) {
    super(`The settings cannot be used:\n${problems.map(problem => `  ${problem}`).join('\n')}`)
  }
}

/**
 * Prints why a command failed.
 * @returns its exit code: 2 for wrong usage or settings, otherwise 1
 */
export function reportFailure(error: unknown): 1 | 2 {
  process.stderr.write(`${explain(error)}\n`)
  return error instanceof UsageError ? 2 : 1
}

/** The message of an error and of what caused it, a line each. */
export function explain(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const lines = [error.message || error.name]
  const { code, hint, detail } = error as { code?: unknown; hint?: unknown; detail?: unknown }
  if (code === 'ECONNREFUSED') lines.push('Nothing answers there. If it is Postgres: RUNBOOK.md, "Postgres does not answer"')
  if (typeof detail === 'string') lines.push(detail)
  if (typeof hint === 'string') lines.push(hint)
  if (error instanceof AggregateError) lines.push(...error.errors.map(explain))
  if (error.cause) lines.push(explain(error.cause))
  return [...new Set(lines)].join('\n')
}

/** The message of an error and of its causes in one sentence, for hb_partitions.last_error and for a line of output. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const hint = 'hint' in error && typeof error.hint === 'string' ? ` (${error.hint})` : ''
  // The AWS SDK calls an error without a message UnknownError, and its name says more.
  const own = (error.message === '' || error.message === 'UnknownError' ? error.name : error.message) + hint
  return error.cause === undefined ? own : `${own}: ${describeError(error.cause)}`
}
