import { gzipSync } from 'node:zlib'
import t from 'tap'
import { waitFor } from '../../testing/database.ts'
import { findExcess, MAX_CONTAINERS } from './batch.ts'
import { answer, withVictim } from '../../testing/hostile-server.ts'
import { ago } from '../../testing/server.ts'

t.test('a body with more arrays and objects than a batch needs is refused before it is parsed', async t => {
  const of = (text: string, isLines = false) => findExcess(Buffer.from(text), isLines)
  t.notOk(of('['.repeat(MAX_CONTAINERS)))
  t.match(of('['.repeat(MAX_CONTAINERS + 1)), { status: 422 })
  t.match(of('{"a":'.repeat(MAX_CONTAINERS + 1)), { status: 422 })
  t.match(of(`[[${'[],'.repeat(MAX_CONTAINERS)}1]]`), { status: 422 }, 'side by side')
  const text = JSON.stringify({ agent_version: '[{"\\,'.repeat(MAX_CONTAINERS) })
  t.notOk(of(`[${text},${text}]`), 'brackets in a string do not count')
  t.match(of(`{"never ended\n${'['.repeat(MAX_CONTAINERS + 1)}`), { status: 422 }, 'a string ends with its line')
  t.match(
    of(`{"never ended\\\n${'['.repeat(MAX_CONTAINERS + 1)}`, true),
    { status: 422 },
    'whatever comes before the end of the line',
  )
  t.match(of(`"${'\\'.repeat(4)}"${'['.repeat(MAX_CONTAINERS + 1)}`), { status: 422 })
  t.notOk(of(`"\\"${'['.repeat(MAX_CONTAINERS + 1)}`), 'an escaped quote does not end the string')
})

t.test('bodies that are too large, too deeply nested or too well compressed cost less than 250 MiB', async t => {
  const { call, device, beat, memory, open, head } = await withVictim(t)
  const { token } = device
  const before = await memory()
  let most = before
  const watch = setInterval(
    () =>
      void memory().then(now => {
        most = Math.max(most, now)
      }),
    100,
  )
  t.teardown(() => clearInterval(watch))
  const deep = '['.repeat(500_000) + ']'.repeat(500_000)
  const inItem = `[{"ts":"${ago(5_000)}","junk":${'['.repeat(400_000)}${']'.repeat(400_000)}}]`
  const wide = `[{"ts":"${ago(5_000)}","junk":[${'[],'.repeat(MAX_CONTAINERS - 4)}[]]}]`
  const bomb = gzipSync(Buffer.alloc(100 * 2 ** 20, 32), { level: 9 })
  const gzip = { 'content-encoding': 'gzip' }
  for (let round = 0; round < 3; round++) {
    const many = async (body: string | Uint8Array, headers = {}) => {
      const calls = Array.from({ length: 4 }, () => call('POST /v1/heartbeats', { token, body, headers }))
      return new Set((await Promise.all(calls)).map(({ status }) => status))
    }
    t.same(await many(deep), new Set([422]))
    t.same(await many(inItem), new Set([422]))
    t.same(await many(wide), new Set([200]), 'as many arrays as a batch may have')
    t.same(await many(bomb, gzip), new Set([413]))
    t.equal(await beat(), 201)
  }

  // 10 MB each, without Content-Length.
  const large = await Promise.all(Array.from({ length: 20 }, open))
  const ended = large.map(answer)
  for (const socket of large) {
    socket.write(head('/v1/heartbeats', 'Transfer-Encoding: chunked\r\n'))
    for (let n = 0; n < 160; n++) socket.write(`10000\r\n${' '.repeat(65_536)}\r\n`)
  }
  // In chunks of one byte.
  const dust = await Promise.all(Array.from({ length: 10 }, open))
  for (const socket of dust) socket.write(head('/v1/heartbeats', 'Transfer-Encoding: chunked\r\n') + '1\r\n \r\n'.repeat(900_000))
  t.equal(await beat(), 201)
  for (const text of await Promise.all(ended)) t.match(text, /^(HTTP\/1\.1 413|$)/)
  // The server reads at most as many of them as a body may have pieces.
  await waitFor(async () => dust.every(socket => socket.destroyed || socket.writableLength === 0))
  t.equal(await beat(), 201)
  clearInterval(watch)
  // Measured: 52 MiB. It was 330 MiB before such batches were refused without parsing.
  t.ok(most - before < 250, `${Math.round(before)} MiB before, at most ${Math.round(most)} MiB`)
})
