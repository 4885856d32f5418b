import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { objectStoreConfig } from '../local/config.ts'
import { spawnNode } from '../local/testing.ts'

// A durable cluster of its own.
t.setTimeout(300_000)

// Those of S3 need a store that takes long to start; archiver/s3-archive.test.ts has them too.
t.test('ten faults under load, nothing is lost', async t => {
  const directory = await mkdtemp(join(tmpdir(), 'fleet-drills-test-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  const file = join(directory, 'DRILLS.md')
  const drills = await spawnNode(t, 'bench/drills.ts', { args: ['--count', '10', '--seed', '9', '--no-s3', '--devices', '600', '--report', file] })
  t.equal((await drills.exited).code, 0, drills.output())
  const report = await readFile(file, 'utf8')
  t.match(report, /^Nothing was lost\.$/m)
  t.match(report, /--count 10 --seed 9 --no-s3/)
  t.match(report, /^\| Postgres killed by -9, and started again \| 1 \|/m)
  t.match(report, /^- [1-9]\d* archives were read back/m)
  if (objectStoreConfig().isCI) t.notMatch(report, /faketime/, 'in CI nothing is left out for want of a package')
})

t.test('a wrong option is answered with the usage and code 2', async t => {
  const drills = await spawnNode(t, 'bench/drills.ts', { args: ['--count', 'many'] })
  t.match(await drills.exited, { code: 2 })
  t.match(drills.output(), /--count takes a whole number of at least 1, got many[^]*--seed/)
})
