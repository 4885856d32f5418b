import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { repository } from '../../lib/repository.ts'

export interface SqlFile {
  /** Relative to the root of the repository, with slashes. */
  path: string
  text: string
}

/** The files of sql/, in the order of their paths. */
export async function sqlFiles(): Promise<SqlFile[]> {
  const names = await readdir(join(repository, 'sql'), { recursive: true })
  const paths = names
    .filter(name => name.endsWith('.sql'))
    .map(name => `sql/${name}`)
    .sort()
  return Promise.all(paths.map(async path => ({ path, text: await readFile(join(repository, path), 'utf8') })))
}

/** The path of the only file with this name. */
export async function sqlFile(name: string) {
  const [found] = (await sqlFiles()).filter(({ path }) => path.endsWith(`/${name}`))
  if (found === undefined) throw new Error(`there is no file ${name} below sql/`)
  return found.path
}
