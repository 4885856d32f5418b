import { parseArgs } from 'node:util'
import { reportFailure, UsageError } from '../lib/errors.ts'

/**
 * An option of a scenario: its default, which also determines its type (undefined: a number that may be left out), and its
 * description.
 */
export interface Option {
  otherwise: undefined | number | readonly number[] | string | boolean
  what: string
  /** The least value of a number; 1 by default. */
  least?: number
}

type Value<T> = T extends readonly number[]
  ? number[]
  : T extends number
    ? number
    : T extends boolean
      ? boolean
      : T extends undefined
        ? number | undefined
        : string
export type Values<S extends Record<string, Option>> = { [K in keyof S]: Value<S[K]['otherwise']> }

/** Runs a program of bench/. Its exit code is what `main` returns, 2 after a wrong command line, and 1 after any other error. */
export async function runProgram(main: (args: string[]) => Promise<number>) {
  try {
    process.exitCode = await main(process.argv.slice(2))
  } catch (error) {
    process.exitCode = reportFailure(error)
  }
}

/**
 * Reads `--name value` and `--flag` according to a scenario's options.
 * @param command what follows `npm run` on the command line, for the usage text: `bench -- growth` or `drills --`
 * @throws UsageError for an unknown option or a value of the wrong type
 */
export function readOptions<S extends Record<string, Option>>(command: string, args: string[], options: S): Values<S> {
  const fail = (problem: string) => new UsageError(`${problem}\n\n${usage(command, options)}`)
  let given: Record<string, string | boolean | undefined>
  try {
    const kinds = Object.entries(options).map(([name, { otherwise }]) => [
      name,
      { type: typeof otherwise === 'boolean' ? ('boolean' as const) : ('string' as const) },
    ])
    given = parseArgs({ args, options: Object.fromEntries(kinds) as Record<string, { type: 'string' }> }).values
  } catch (error) {
    throw fail((error as Error).message)
  }
  const number = (name: string, text: string, least = 1) => {
    const value = /^\d+$/.test(text) ? Number(text) : NaN
    if (value >= least) return value
    throw fail(`--${name} needs a whole number of at least ${least}, got ${text || 'nothing'}`)
  }
  return Object.fromEntries(
    Object.entries(options).map(([name, { otherwise, least }]) => {
      const text = given[name]
      if (typeof text !== 'string') return [name, text ?? otherwise]
      if (otherwise === undefined || typeof otherwise === 'number') return [name, number(name, text, least)]
      if (Array.isArray(otherwise)) return [name, text.split(',').map(part => number(name, part, least))]
      return [name, text]
    }),
  ) as Values<S>
}

function usage(command: string, options: Record<string, Option>) {
  const lines = Object.entries(options).map(([name, { otherwise, what }]) => {
    const shown = otherwise === undefined || otherwise === '' || otherwise === false ? '' : ` (${otherwise.toString()})`
    return `  --${name.padEnd(12)} ${what}${shown}`
  })
  if (command.startsWith('bench ')) lines.push('  --output       file for the figures as JSON (one in .local/bench)')
  return `usage: npm run ${command} [options]\n${lines.join('\n')}`
}
