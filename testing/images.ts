// What the tests of the images and of compose.yaml read: the files as an engine would, without one.
import { cp, mkdir, mkdtemp, readdir, readFile, realpath, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { DockerfileParser, type Copy, type Dockerfile } from 'dockerfile-ast'
import type { Test } from 'tap'
import { parse } from 'yaml'
import { repository } from '../local/config.ts'

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

/** Where a service's image is built, and by which Dockerfile. */
export function buildOf({ build }: Service) {
  if (!build) return undefined
  const context = join(repository, 'docker', build.context)
  return { context, dockerfile: join(context, build.dockerfile ?? 'Dockerfile') }
}

/** The command of a service's healthcheck, of compose.yaml or else of its Dockerfile. */
export async function healthcheckOf(service: Service) {
  if (service.healthcheck?.test) return service.healthcheck.test.slice(1)
  const text = await readFile(buildOf(service)?.dockerfile ?? '', 'utf8')
  return JSON.parse(/^HEALTHCHECK [^]*?CMD (\[.*\])$/m.exec(text)?.[1] ?? '[]') as string[]
}

export async function readDockerfile(path: string) {
  return DockerfileParser.parse(await readFile(path, 'utf8'))
}

/** What is copied from the context; what comes from an earlier stage is not. */
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

/** Whether .dockerignore leaves a path out: the last line that matches it, or a directory that it is in, decides. */
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

/** The image of docker/node as its Dockerfile makes it, in a directory: its files, and of the packages those that `npm ci --omit=dev` installs. */
export async function withImage(t: Test) {
  const root = await mkdtemp(join(await realpath(tmpdir()), 'nexmdm-image-'))
  t.teardown(() => rm(root, { recursive: true, force: true }))
  const isIgnored = await readIgnore()
  const stages = (await readFile(join(repository, 'docker/node/Dockerfile'), 'utf8')).split(/^(?=FROM )/m)
  for (const { sources, target } of copiesOf(DockerfileParser.parse(stages.at(-1) ?? ''))) {
    for (const source of sources) {
      const to = target.endsWith('/') ? join(root, target, source) : join(root, target)
      await mkdir(dirname(to), { recursive: true })
      // A directory that is not named itself is entered all the same, for the sake of what is kept in it.
      await cp(join(repository, source), to, {
        recursive: true,
        verbatimSymlinks: true,
        filter: from => from === join(repository, source) || !isIgnored(relative(repository, from)),
      })
    }
  }
  await linkPackages(join(root, 'node_modules'))
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
