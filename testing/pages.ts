// Helpers for the tests of Markdown pages: the pages' commands, and a store against which to run them.
import { spawn } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Test } from 'tap'
import { archiverEnv, daysAgo, makeDirectory, partitionOf } from './archiver.ts'
import { freePort } from '../local/cluster.ts'
import { plainEnv } from '../local/config.ts'
import { repository } from '../lib/repository.ts'
import { spawnNode, waitFor, withDatabase } from './database.ts'
import { enroll } from './fleet.ts'

export function readPage(page: string) {
  return readFile(join(repository, page), 'utf8')
}

/** The text of each fenced block in this language, without indent. Blocks in lists are included. */
export function blocksOf(text: string, language: string) {
  return [...text.matchAll(new RegExp(`^( *)\`\`\`${language}\\n([^]*?)^ *\`\`\`$`, 'gm'))].map(([, indent = '', block = '']) =>
    indent ? block.replaceAll(new RegExp(`^${indent}`, 'gm'), '') : block,
  )
}

/** A section of a page, from its heading to the next heading of the same level. */
export function section(text: string, title: string) {
  return (
    text
      .slice(text.indexOf(`\n## ${title}\n`))
      .slice(1)
      .split('\n## ')[0] ?? ''
  )
}

/**
 * Makes a store with a server and an archiver, in which the days of so long ago are archived and dropped, and returns the
 * variables that a shell needs for it.
 */
export async function withArchivedDays(t: Test, ago: number[]) {
  const db = await withDatabase(t)
  // The first device, as npm start makes it.
  const [device] = (await enroll(db.sql, 1)) as [number]
  for (const day of ago.map(daysAgo)) {
    await db.sql`select fleet.create_partitions(${day}::date, ${day}::date)`
    await db.admin`insert into fleet.device_heartbeats (ts, device_id) select ${day}::date + n * interval '1 minute', ${device} from generate_series(1, 500) n`
    await db.sql`select fleet.archive_partition(${await partitionOf(db.sql, day)})`
  }
  const directory = await makeDirectory(t)
  const port = await freePort(true)
  const env = {
    ...archiverEnv(db, directory),
    DATABASE_URL: db.url('postgres'),
    NEW_DATABASE_URL: (await withDatabase(t, 'template0')).url('postgres'),
    ADMIN_KEY: 'an-admin-key-for-tests',
    PORT: String(port),
    WORKERS: '1',
  }
  await spawnNode(t, 'archiver/main.ts', { env })
  await spawnNode(t, 'server/main.ts', { env, ready: `http://127.0.0.1:${port}/readyz` })
  await waitFor(async () => (await db.sql`select from fleet.hb_partitions where state = 'dropped'`).length === ago.length)
  return { db, env }
}

/** Runs lines of shell, by default in the repository, until one fails. curl fails if the answer is an error. */
export function runShell(command: string, env: Record<string, string | undefined>, { cwd = repository, input = '' } = {}) {
  return new Promise<{ code: number | null; output: string }>((resolve, reject) => {
    // eslint-disable-next-line no-restricted-syntax -- the command is a page of ours
    const shell = spawn('bash', ['-c', `set -eo pipefail; curl() { command curl --fail-with-body "$@"; }\n${command}`], {
      cwd,
      env: { ...plainEnv(), ...env },
      stdio: ['pipe', 'pipe', 'pipe'],
      detached: true, // no terminal to ask for a password
    })
    let output = ''
    for (const stream of [shell.stdout, shell.stderr])
      stream.on('data', (chunk: Buffer) => {
        output += chunk.toString()
      })
    shell.stdin.on('error', () => {}) // the exit code tells more
    shell.stdin.end(input)
    shell.once('error', reject)
    shell.once('close', code => resolve({ code, output }))
  })
}
