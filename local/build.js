// Compiles every TypeScript file to JavaScript in build/, one by one. Node 20 cannot run TypeScript, and programs that compile
// themselves as they start take twice as long to start and more memory (bench/RESULTS.md).
//
// node local/build.js
import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { build } from 'esbuild'

const root = join(import.meta.dirname, '..')
const target = join(root, 'build')

await mkdir(target, { recursive: true })
const { outputFiles } = await build({
  absWorkingDir: root,
  entryPoints: await sources(),
  outbase: root,
  outdir: target,
  format: 'esm',
  platform: 'node',
  target: 'node20',
  sourcemap: true,
  sourcesContent: false,
  packages: 'external',
  bundle: true,
  // Each file stays a file: only the names in its imports change.
  plugins: [
    {
      name: 'imports',
      setup({ onResolve }) {
        onResolve({ filter: /^\./ }, ({ path, kind }) =>
          kind === 'entry-point' ? undefined : { path: path.replace(/\.tsx?$/, '.js'), external: true },
        )
      },
    },
  ],
  write: false,
})
await Promise.all(outputFiles.map(({ path, contents }) => replace(path, contents)))
await removeOthers(new Set(outputFiles.map(({ path }) => path)))

/** The TypeScript files of this clone, or of an image that has some of its directories. */
async function sources() {
  const { include } = JSON.parse(await readFile(join(root, 'tsconfig.json'), 'utf8'))
  const found = include
    .filter(directory => existsSync(join(root, directory)))
    .map(async directory => {
      const files = await readdir(join(root, directory), { recursive: true })
      return files.filter(file => /\.tsx?$/.test(file)).map(file => `./${directory}/${file}`)
    })
  return (await Promise.all(found)).flat()
}

/** Writes a file if its content is new, and never a part of it: a program may be starting from it. */
async function replace(path, contents) {
  const old = await readFile(path).catch(() => undefined)
  if (old?.equals(contents)) return
  await mkdir(dirname(path), { recursive: true })
  const fresh = `${path}.${process.pid}`
  await writeFile(fresh, contents)
  await rename(fresh, path)
}

/** Removes what was made of files that are gone. */
async function removeOthers(kept) {
  for (const file of await readdir(target, { recursive: true })) {
    const path = join(target, file)
    if (/\.js(\.map)?$/.test(file) && !kept.has(path)) await rm(path, { force: true })
  }
}
