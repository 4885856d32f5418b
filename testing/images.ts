// Reads the Dockerfiles and compose.yaml for tests, as a container engine would, but without one.
import { execFile } from 'node:child_process'
import { cp, mkdir, mkdtemp, readdir, readFile, realpath, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { promisify } from 'node:util'
import { DockerfileParser, type Copy, type Dockerfile } from 'dockerfile-ast'
import type { Test } from 'tap'
import { parse } from 'yaml'
import { plainEnv } from '../local/config.ts'
import { repository } from '../lib/repository.ts'

const run = promisify(execFile)

export interface Service {
  image: string
  build?: { context: string; dockerfile?: string }
  user?: string
  command?: string[]
  entrypoint?: string[]
  environment?: Record<string, string>
  volumes?: (string | { type: string; source: string; target: string })[]
  ports?: string[]
  networks?: string[]
  network_mode?: string
  depends_on?: Record<string, { condition: string }>
  healthcheck?: { disable?: boolean; test?: string[] }
  restart: string
  profiles?: string[]
  read_only: boolean
  cap_drop: string[]
  cap_add?: string[]
  security_opt: string[]
  cpus: number
  mem_limit: string
  pids_limit: number
}

export interface Compose {
  name: string
  services: Record<string, Service>
  volumes: Record<string, unknown>
  networks: Record<string, unknown>
}

export const composeFile = join(repository, 'docker/compose.yaml')

export async function readCompose() {
  return parse(await readFile(composeFile, 'utf8'), { merge: true }) as Compose
}

/** The context and the Dockerfile from which a service's image is built. */
export function buildOf({ build }: Service) {
  if (!build) return undefined
  const context = join(repository, 'docker', build.context)
  return { context, dockerfile: join(context, build.dockerfile ?? 'Dockerfile') }
}

/** The command of a service's healthcheck: from compose.yaml, otherwise from its Dockerfile. */
export async function healthcheckOf(service: Service) {
  if (service.healthcheck?.test) return service.healthcheck.test.slice(1)
  const text = await readFile(buildOf(service)?.dockerfile ?? '', 'utf8')
  return JSON.parse(/^HEALTHCHECK [^]*?CMD (\[.*\])$/m.exec(text)?.[1] ?? '[]') as string[]
}

export async function readDockerfile(path: string) {
  return DockerfileParser.parse(await readFile(path, 'utf8'))
}

/** The COPY instructions that copy from the context, not from an earlier stage. */
export function copiesOf(dockerfile: Dockerfile) {
  return dockerfile
    .getCOPYs()
    .filter(copy => !isFromStage(copy))
    .map(copy => {
      const paths = copy.getArguments().map(argument => argument.getValue())
      return { sources: paths.slice(0, -1), target: paths.at(-1) ?? '' }
    })
}

function isFromStage(copy: Copy) {
  return copy.getFlags().some(flag => flag.getName() === 'from')
}

/**
 * Returns a function that tells whether .dockerignore excludes a path. The last line that matches the path, or a directory that
 * contains it, decides.
 */
export async function readIgnore() {
  const lines = (await readFile(join(repository, '.dockerignore'), 'utf8'))
    .split('\n')
    .filter(line => line && !line.startsWith('#'))
  const rules = lines.map(line => {
    const pattern = line
      .replace(/^!/, '')
      .replace(/[.+^$()|[\]{}\\]/g, '\\$&')
      .replace(/\*\*\//g, '\0')
      .replace(/\*/g, '[^/]*')
      .replaceAll('\0', '(.*/)?')
    return { isKept: line.startsWith('!'), matches: new RegExp(`^${pattern}(/|$)`) }
  })
  return (path: string) => rules.findLast(({ matches }) => matches.test(path))?.isKept === false
}

/**
 * Makes a directory with the files of docker/node's image, as its Dockerfile copies them, compiled as its first stage does. Of the
 * packages it has those that `npm ci --omit=dev` installs, and they suffice to compile it.
 */
export async function withImage(t: Test) {
  const [packages = '', last = ''] = (await readFile(join(repository, 'docker/node/Dockerfile'), 'utf8'))
    .split(/^(?=FROM )/m)
    .slice(1)
  const stage = await withStage(t, packages)
  await linkPackages(join(stage, 'node_modules'))
  await run(process.execPath, ['local/build.js'], { cwd: stage, env: plainEnv() })
  const root = await withStage(t, last)
  await cp(join(stage, 'build'), join(root, 'build'), { recursive: true })
  await linkPackages(join(root, 'node_modules'))
  return root
}

/** What a stage of a Dockerfile copies from the context. */
async function withStage(t: Test, text: string) {
  const root = await mkdtemp(join(await realpath(tmpdir()), 'nexmdm-image-'))
  t.teardown(() => rm(root, { recursive: true, force: true }))
  const isIgnored = await readIgnore()
  for (const { sources, target } of copiesOf(DockerfileParser.parse(text))) {
    for (const source of sources) {
      const to = target.endsWith('/') ? join(root, target, source) : join(root, target)
      await mkdir(dirname(to), { recursive: true })
      // A directory that is not listed itself is still entered, because it may contain files to keep.
      await cp(join(repository, source), to, {
        recursive: true,
        verbatimSymlinks: true,
        filter: from => from === join(repository, source) || !isIgnored(relative(repository, from)),
      })
    }
  }
  return root
}

async function linkPackages(target: string) {
  const { packages } = JSON.parse(await readFile(join(repository, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: boolean }>
  }
  await mkdir(target)
  const installed = new Set(await readdir(join(repository, 'node_modules')))
  for (const [path, { dev }] of Object.entries(packages)) {
    const name = path.replace(/^node_modules\//, '')
    if (dev || path === '' || name.includes('node_modules/') || !installed.has(name.split('/')[0] ?? '')) continue
    await mkdir(dirname(join(target, name)), { recursive: true })
    await symlink(join(repository, path), join(target, name))
  }
}
