// npm run build: compiles every TypeScript file to JavaScript in build/, one by one, if one has changed. Node 20 cannot run
// TypeScript, and a program that compiles itself as it starts takes more time and memory (bench/RESULTS.md, "start").
import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'

const root = join(import.meta.dirname, '..')
const target = join(root, 'build')
/** What the last build was made of: the time and the size of each file. */
const noteFile = join(target, 'made-of.json')

const files = await sources()
const note = await madeOf(files)
if ((await readFile(noteFile, 'utf8').catch(() => '')) !== note) {
  const outputFiles = await compile(files)
  await Promise.all(outputFiles.map(({ path, contents }) => replace(path, contents)))
  await removeOthers(new Set(outputFiles.map(({ path }) => path)))
  await replace(noteFile, Buffer.from(note))
}

/** The TypeScript files of this clone, or of an image that has some of its directories. */
async function sources() {
  const { include } = JSON.parse(await readFile(join(root, 'tsconfig.json'), 'utf8'))
  const found = include
    .filter(directory => existsSync(join(root, directory)))
    .map(async directory => {
      const names = await readdir(join(root, directory), { recursive: true })
      return names.filter(name => /\.tsx?$/.test(name)).map(name => `./${directory}/${name}`)
    })
  return (await Promise.all(found)).flat().sort()
}

async function madeOf(files) {
  const lines = ['local/build.js', 'package-lock.json', 'tsconfig.json', ...files].map(async file => {
    const { mtimeMs, size } = await stat(join(root, file))
    return [file, mtimeMs, size]
  })
  return JSON.stringify(await Promise.all(lines))
}

async function compile(entryPoints) {
  const { build } = await import('esbuild')
  const { outputFiles } = await build({
    absWorkingDir: root,
    entryPoints,
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
  return outputFiles
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
