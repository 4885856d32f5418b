import { execFile } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import type { Cluster } from '../local/cluster.ts'
import { plainEnv } from '../local/config.ts'

const run = promisify(execFile)

/** It has other arguments since PostgreSQL 17. */
export const CHANGED_FUNCTION = 'pg_logical_emit_message'

/**
 * Restores a dump as RUNBOOK.md says: without the rights on that function.
 * @param cluster whose pg_restore is used
 * @param url of the database, for a superuser
 * @param leaveOut entries of the dump's list to leave out, too
 */
export async function pgRestore(
  cluster: Cluster,
  url: string,
  dump: string,
  { options = [], leaveOut }: { options?: string[]; leaveOut?: RegExp } = {},
) {
  const program = cluster.program('pg_restore')
  const { stdout } = await run(program, ['--list', dump], { env: plainEnv() })
  const entries = stdout.split('\n').filter(line => !line.includes(CHANGED_FUNCTION) && !leaveOut?.test(line))
  const list = `${dump}.list`
  await writeFile(list, entries.join('\n'))
  await run(program, ['--exit-on-error', '-d', url, `--use-list=${list}`, ...options, dump], { env: plainEnv() })
}
