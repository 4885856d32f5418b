import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { repository } from '../local/config.ts'

/** Replaces each folder in the arguments of `npm test` by the test files in it. tap itself would run none of them. */
export async function expandFolders(args: string[]) {
  const expanded = args.map(async arg => {
    const isFolder = await stat(join(repository, arg)).then(
      found => found.isDirectory(),
      () => false,
    )
    if (!isFolder) return [arg]
    const names = await readdir(join(repository, arg), { recursive: true })
    const tests = names.filter(name => /\.test\.tsx?$/.test(name)).sort()
    return tests.map(name => join(arg, name))
  })
  return (await Promise.all(expanded)).flat()
}
