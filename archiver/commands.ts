import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import type { Json } from '@duckdb/node-api'
import { registerArchives } from './archive/register.ts'
import { readConfig, type ArchiverConfig } from './config.ts'
import { confirmArchives } from './archive/confirm.ts'
import { createLog } from '../lib/log.ts'
import { queryArchive, QueryError, type Answer, type Days } from './query/query.ts'
import { findOrphans, listArchives, verifyArchive } from './archive/verify.ts'
import { checkChain } from './archive/chain.ts'
import { isoMicros } from './archive/iso-micros.ts'
import type { Manifest } from './archive/manifest.ts'
import { moveOldObjects } from './archive/move.ts'
import { shortId } from './archive/signature.ts'
import { closeWorker, openWorker, type Worker } from './context.ts'
import { restoreOnce, writeIndex } from './worker.ts'
import { describeError, explain, SettingsError, UsageError } from '../lib/errors.ts'

const USAGE = `usage: npm run archive -- <command>
  list                     lists the proven archives: day, rows, size, state, place
  verify                   compares each manifest and object size with the database, finds files that belong to no archive, says
                           who signed each archive, and checks signatures and the chain of days if a key is trusted
  verify <date>            does the same for one day, and also reads every byte and row of its archive
  verify --all             does the same for every archive; prints one line per fault, exit code 1 if there is one
  restore <date> [<date>]  brings the days from the first to the second date back online
  query "<sql>"            runs one SELECT (in DuckDB's SQL) over the relations archive, online, and device_heartbeats,
                           which has each day once, from the database or else from the archive
        [--from <date>] [--to <date>]  limits the query to these days; only their archives are fetched
        [--json | --csv]               prints JSON or CSV instead of a table
  confirm                  reads back and confirms each archive that is waiting for a second proof, with the login of
                           VERIFIER_DATABASE_URL; exit code 1 if one cannot be confirmed
  register                 registers every archive of the store in a database that did not write it, for example after the
                           loss of the one that did; reads back and proves each one first; exit code 1 if one cannot be registered
  reindex                  writes index.json again from the manifests, and moves what older versions stored among the Parquet
                           files; exit code 1 if a manifest cannot be read or moved
  key                      prints the id and the public key of ARCHIVE_SIGNING_KEY_FILE
  a date is a UTC day, like 2026-08-15`

/** A table is for people, and its columns are as wide as its widest row. */
const MAX_SHOWN_ROWS = 1000

/** Where a command prints. A terminal, or a test. */
export interface Output {
  /** What was asked for. Resolves when it is written. */
  write: (text: string) => Promise<void>
  /** What is said about the work, a line. */
  say: (line: string) => void
  /** One line that the next one replaces; only for a person who watches, and otherwise never called. */
  progress?: ((text: string) => void) | undefined
}

interface Context {
  worker: Worker
  output: Output
}

/**
 * Runs a command of `npm run archive`, such as `verify --all`.
 * @returns its exit code: 0, or 1 after a fault, or 2 for wrong usage or settings
 */
export async function runCommand(args: string[], env: Record<string, string | undefined>, output: Output): Promise<number> {
  try {
    const run = parseCommand(args, output)
    const config = readConfig(env)
    // The command prints failures itself; the log would print them twice.
    const settings = run === confirm ? asVerifier(config) : config
    const worker = await openWorker(
      { ...settings, ...(env.TMPDIR && { temporary: env.TMPDIR }) },
      createLog('archiver', 'silent'),
    )
    worker.display = output.progress
      ? { everyMs: 200, show: output.progress }
      : { everyMs: 5000, show: text => text !== '' && output.say(text) }
    try {
      return await run({ worker, output })
    } finally {
      await closeWorker(worker)
    }
  } catch (error) {
    output.say(error instanceof UsageError ? explain(error) : error instanceof QueryError ? error.message : describeError(error))
    return error instanceof UsageError ? 2 : 1
  }
}

function parseCommand(args: string[], output: Output): (context: Context) => Promise<number> {
  const [command, ...rest] = args
  if (command === 'list' && rest.length === 0) return list
  if (command === 'verify' && rest.length === 0) return context => verify(context, { isQuick: true })
  if (command === 'verify' && rest.length === 1 && rest[0] === '--all') return context => verify(context, { isQuick: false })
  if (command === 'verify' && rest.length === 1) {
    const date = day(rest[0])
    return context => verify(context, { isQuick: false, date })
  }
  if (command === 'restore' && (rest.length === 1 || rest.length === 2)) {
    const from = day(rest[0])
    const to = day(rest[1] ?? rest[0])
    if (from > to) throw wrongUsage(`${from} is after ${to}`)
    return context => restore(context, from, to)
  }
  if (command === 'query') {
    const { sql, days, format } = parseQuery(rest)
    return context => query(context, sql, days, format)
  }
  if (command === 'confirm' && rest.length === 0) return confirm
  if (command === 'register' && rest.length === 0) return register
  // The former name, accepted for one release.
  if (command === 'adopt' && rest.length === 0) {
    output.say('adopt is now called register; the next release no longer accepts adopt')
    return register
  }
  if (command === 'reindex' && rest.length === 0) return reindex
  if (command === 'key' && rest.length === 0) return key
  throw command === undefined ? new UsageError(USAGE) : wrongUsage(`not understood: ${args.join(' ')}`)
}

function wrongUsage(problem: string) {
  return new UsageError(`${problem}\n${USAGE}`)
}

function parseQuery(args: string[]) {
  let parsed
  try {
    parsed = parseArgs({
      args,
      allowPositionals: true,
      options: { from: { type: 'string' }, to: { type: 'string' }, json: { type: 'boolean' }, csv: { type: 'boolean' } },
    })
  } catch (error) {
    throw wrongUsage(describeError(error))
  }
  const {
    values,
    positionals: [sql, ...more],
  } = parsed
  if (sql === undefined || more.length > 0) throw wrongUsage('expected one query, in quotes')
  if (values.json && values.csv) throw wrongUsage('expected --json or --csv, got both')
  const from = values.from === undefined ? undefined : day(values.from)
  const to = values.to === undefined ? undefined : day(values.to)
  if (from !== undefined && to !== undefined && from > to) throw wrongUsage(`${from} is after ${to}`)
  return { sql, days: { from, to }, format: values.json ? printJson : values.csv ? printCsv : printRows }
}

function day(text = '') {
  const isDay = /^\d{4}-\d\d-\d\d$/.test(text) && new Date(`${text}T00:00:00Z`).toJSON()?.startsWith(text)
  if (!isDay) throw wrongUsage(`expected a date like 2026-08-15, got ${text}`)
  return text
}

async function list({ worker, output }: Context) {
  const archives = await listArchives(worker)
  if (archives.length === 0) {
    await print(output, 'no archives yet')
    return 0
  }
  const rows = archives.map(archive => [
    archive.range_start.slice(0, 10),
    archive.partition_name,
    archive.row_count,
    archive.archive_bytes,
    archive.state,
    archive.proven_at.slice(0, 19),
    archive.archive_url,
  ])
  await printTable(output, ['from', 'partition', 'rows', 'bytes', 'state', 'proven at', 'archive'], rows)
  return 0
}

async function verify({ worker, output }: Context, { isQuick, date }: { isQuick: boolean; date?: string }) {
  const archives = await listArchives(worker, date)
  if (date !== undefined && archives.length === 0) {
    await print(output, `${date}: the database has no proven archive of this day`)
    return 1
  }
  let faults = 0
  let unsigned = 0
  for (const [index, archive] of archives.entries()) {
    output.progress?.(`${index + 1} of ${archives.length}: ${archive.partition_name}`)
    const say = ({ signature }: Manifest) => {
      if (!signature) {
        unsigned++
        return
      }
      output.progress?.('')
      output.say(`${archive.partition_name}: ${signedBy(signature.key, worker)}`)
    }
    for (const fault of await verifyArchive(worker, archive, isQuick, say)) {
      output.progress?.('')
      await print(output, fault)
      faults++
    }
  }
  output.progress?.('')
  const days = date === undefined ? undefined : archives.map(({ range_start }) => isoMicros(range_start).slice(0, 10))
  const chain = await checkChain(worker.store)
  const broken = chain.filter(({ about, by }) => days === undefined || days.includes(about) || days.includes(by))
  for (const fault of [...broken.map(({ fault }) => fault), ...(await findOrphans(worker, date))]) {
    await print(output, fault)
    faults++
  }
  const what = isQuick ? 'manifests and sizes' : 'every byte and row'
  const summary = `${archives.length} archives, ${what}: ${faults === 0 ? 'no fault' : `${faults} faults`}`
  output.say(unsigned === 0 ? summary : `${summary}; ${unsigned} without a signature`)
  return faults > 0 ? 1 : 0
}

function signedBy(id: string, { store }: Worker) {
  return `signed by ${shortId(id)}${store.signing?.trusted.size ? '' : ' (not checked, because no key is trusted)'}`
}

/** Prints what others need to check signatures. Text before a key is ignored by what reads PEM. */
async function key({ worker: { store }, output }: Context) {
  const { signer } = store.signing ?? {}
  if (!signer) throw new SettingsError(['ARCHIVE_SIGNING_KEY_FILE: is not set; see "Sign the archive" in RUNBOOK.md'])
  await output.write(`key ${signer.id}\n${signer.pem}`)
  return 0
}

async function reindex({ worker, output }: Context) {
  const old = await moveOldObjects(worker, key => output.progress?.(`moving ${key}`))
  output.progress?.('')
  const { count, faults } = await writeIndex(worker)
  for (const fault of [...old.faults, ...faults]) await print(output, fault)
  if (old.moved > 0) output.say(`${old.moved} objects of an older version moved out of device_heartbeats/`)
  output.say(
    `index.json lists ${count} ${count === 1 ? 'archive' : 'archives'}` +
      (old.faults.length === 0 ? '' : `; ${old.faults.length} objects could not be moved`) +
      (faults.length === 0 ? '' : `; ${faults.length} manifests could not be read`),
  )
  return old.faults.length + faults.length > 0 ? 1 : 0
}

/** @throws {SettingsError} when VERIFIER_DATABASE_URL is not set */
function asVerifier(config: ArchiverConfig) {
  if (config.verifierDatabase) return { ...config, database: config.verifierDatabase }
  throw new SettingsError([
    "VERIFIER_DATABASE_URL: is not set; archives are confirmed by a login of fleet_verifier, not by the archiver's login",
  ])
}

async function confirm({ worker, output }: Context) {
  const { confirmed, faults } = await confirmArchives(worker, ({ partition_name, row_count }) => {
    output.progress?.(`reading back ${partition_name}, ${row_count} rows`)
  })
  output.progress?.('')
  for (const fault of faults) await print(output, fault)
  output.say(`${confirmed} confirmed${faults.length === 0 ? '' : `; ${faults.length} not confirmed`}`)
  return faults.length > 0 ? 1 : 0
}

async function register({ worker, output }: Context) {
  const { registered, alreadyKnown, faults } = await registerArchives(worker, ({ partition, row_count }) => {
    output.progress?.(`reading back ${partition}, ${row_count} rows`)
  })
  output.progress?.('')
  for (const fault of faults) await print(output, fault)
  output.say(
    `${registered} registered, ${alreadyKnown} known before${faults.length === 0 ? '' : `; ${faults.length} not registered`}`,
  )
  return faults.length > 0 ? 1 : 0
}

/** Requests the days and does the work, unless a running archiver is faster. Waits for the end in both cases. */
async function restore(context: Context, from: string, to: string) {
  const stopping = new AbortController()
  const stop = () => stopping.abort(new Error('stopped'))
  const signals = ['SIGINT', 'SIGTERM'] as const
  for (const signal of signals) process.on(signal, stop)
  try {
    return await restoreUntil(context, from, to, stopping.signal)
  } finally {
    for (const signal of signals) process.off(signal, stop)
  }
}

async function restoreUntil({ worker, output }: Context, from: string, to: string, stopping: AbortSignal) {
  const { sql } = worker
  const [request] = await sql<{ request_id: string }[]>`select fleet.request_restore(${from}::date, ${to}::date) as request_id`
  if (!request) throw new Error('fleet.request_restore returned nothing')
  const { request_id } = request
  const said = new Set<string>()
  let failures = 0
  while (!stopping.aborted) {
    const items = await sql<
      {
        partition_name: string
        state: string
        last_error: string | null
        lease_owner: string | null
        row_count: string
        left_out: string | null
      }[]
    >`
      select i.partition_name, i.state, i.last_error, i.lease_owner, i.left_out, p.row_count
      from fleet.restore_items i
      join fleet.hb_partitions p using (partition_name)
      where i.request_id = ${request_id}
      order by p.range_start`
    for (const { partition_name, state, last_error, lease_owner, left_out, row_count } of items) {
      const leftOut =
        left_out === null ? '' : `; left out because the table no longer has it, and kept in the archive: ${left_out}`
      const word = {
        running: `${partition_name}: being restored by ${lease_owner}, ${row_count} rows`,
        done: `${partition_name}: restored, ${row_count} rows${leftOut}`,
        failed: `${partition_name}: failed: ${last_error}`,
      }[state]
      if (word === undefined || said.has(word)) continue
      said.add(word)
      output.progress?.('')
      await print(output, word)
      if (state === 'failed') failures++
    }
    const isOver = items.every(item => item.state === 'done' || item.state === 'failed')
    if (isOver) {
      if (failures > 0) return 1
      await print(output, `kept online until you release it: select fleet.release_partition('…');`)
      return 0
    }
    if ((await restoreOnce(worker, stopping)) === 'idle') await sleep(500, undefined, { signal: stopping }).catch(() => {})
  }
  output.say(`stopped; request ${request_id} stays, and the archiver will continue it`)
  return 1
}

type Print = (answer: Answer, output: Output) => Promise<void>

async function query({ worker, output }: Context, sql: string, days: Days, print: Print) {
  await queryArchive(worker, sql, days, answer => print(answer, output))
  return 0
}

async function printRows({ columns, rows }: Answer, output: Output) {
  const shown: string[][] = []
  let count = 0
  for await (const chunk of rows) {
    count += chunk.length
    for (const row of chunk.slice(0, MAX_SHOWN_ROWS - shown.length))
      shown.push(row.map(value => (value === null ? '' : asText(value))))
  }
  await printTable(output, columns, shown)
  output.say(
    count > shown.length
      ? `${count} rows, of which the first ${MAX_SHOWN_ROWS} are shown; --csv or --json prints all`
      : `${count} ${count === 1 ? 'row' : 'rows'}`,
  )
}

/** Prints a JSON array with one object per line. */
async function printJson({ columns, rows }: Answer, output: Output) {
  let before = '[\n'
  for await (const chunk of rows) {
    const lines = chunk.map(row => JSON.stringify(Object.fromEntries(columns.map((name, column) => [name, row[column]]))))
    await output.write(`${before}${lines.join(',\n')}`)
    before = ',\n'
  }
  await output.write(before === '[\n' ? '[]\n' : '\n]\n')
}

/** Prints CSV as in RFC 4180, but with \n. Null is an empty field, an empty text is "". */
async function printCsv({ columns, rows }: Answer, output: Output) {
  const line = (row: Json[]) => `${row.map(value => (value === null ? '' : csvField(asText(value)))).join(',')}\n`
  await output.write(line(columns))
  for await (const chunk of rows) await output.write(chunk.map(line).join(''))
}

function csvField(text: string) {
  return text === '' || /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}

function asText(value: Json) {
  return typeof value === 'object' ? JSON.stringify(value) : String(value)
}

function print(output: Output, line: string) {
  return output.write(`${line}\n`)
}

async function printTable(output: Output, header: string[], rows: string[][]) {
  const widths = header.map((name, column) => Math.max(name.length, ...rows.map(row => row[column]?.length ?? 0)))
  for (const row of [header, ...rows]) {
    await print(
      output,
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
  }
}
