// The store of an acceptance run: it stays in its directory, so that a run that was cut short goes on.
import { chmod, mkdir, readFile, rename, statfs, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import postgres from 'postgres'
import { Cluster } from '../../local/cluster.ts'
import { migrate } from '../../cli/migrate.ts'
import { requirePostgres } from '../../local/packages.ts'
import { step } from '../../lib/progress.ts'
import { startProgram, type Device, type Store } from '../../bench/store.ts'
import type { Line } from './table.ts'

export interface Kept {
  /** What was asked for; another run in the same directory must ask for the same. */
  sizes: Record<string, number>
  devices: Device[]
  /** What each finished step found. */
  done: Record<string, { at: string; seconds: number; lines: Line[] }>
}

export interface Harness extends Store {
  directory: string
  kept: Kept
  keep: () => Promise<void>
  archiverEnv: () => Record<string, string>
  end: () => Promise<void>
}

/** @throws when the directory holds a run of other sizes */
export async function openHarness(directory: string, sizes: Kept['sizes']): Promise<Harness> {
  await mkdir(directory, { recursive: true })
  // Postgres, as another user, goes through it.
  await chmod(directory, 0o755)
  const file = join(directory, 'state.json')
  const text = await readFile(file, 'utf8').catch(() => undefined)
  const kept: Kept = text === undefined ? { sizes, devices: [], done: {} } : (JSON.parse(text) as Kept)
  if (JSON.stringify(kept.sizes) !== JSON.stringify(sizes)) {
    throw new Error(`${directory} holds a run of other sizes: ${JSON.stringify(kept.sizes)}. Give another --dir, or remove it.`)
  }
  const keep = async () => {
    await writeFile(`${file}.new`, JSON.stringify(kept), { mode: 0o600 })
    await rename(`${file}.new`, file)
  }
  const cluster = new Cluster({
    dir: join(directory, 'cluster'),
    postgres: await requirePostgres(),
    databases: ['fleet'],
    cronDatabase: 'fleet',
  })
  await step(`Starting Postgres in ${directory}`, async () => {
    if (!cluster.exists()) await cluster.create()
    await cluster.start()
  })
  const prepare = async () => {
    await migrate(cluster.url('postgres', 'fleet'), { log: () => {} })
    await cluster.allowLogins()
  }
  await prepare().catch(async (error: unknown) => {
    await cluster.stop()
    throw error
  })
  const admin = postgres(cluster.url('postgres', 'fleet'), { max: 4, onnotice: () => {} })
  return {
    cluster,
    admin,
    directory,
    kept,
    keep,
    archiverEnv: () => ({
      ARCHIVER_DATABASE_URL: cluster.url('fleet_archiver', 'fleet'),
      ARCHIVE_URL: pathToFileURL(join(directory, 'archive')).href,
    }),
    async end() {
      await admin.end({ timeout: 1 })
      await cluster.stop()
    },
  }
}

/** Runs the archiver until nothing is left to do. @throws when something failed */
export async function archiveAll(harness: Harness) {
  const archiver = startProgram('archiver/main.ts', { args: ['--once'], env: harness.archiverEnv() })
  await archiver.exited
  if (/"level":"(error|fatal)"/.test(archiver.output())) throw new Error(`the archiver failed:\n${archiver.output()}`)
}

export async function freeBytes(directory: string) {
  await mkdir(directory, { recursive: true })
  const { bavail, bsize } = await statfs(directory)
  return bavail * bsize
}
