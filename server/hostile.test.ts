import type { Socket } from 'node:net'
import t from 'tap'
import { size } from '../local/config.ts'
import { waitFor } from '../testing/database.ts'
import { answer, withVictim } from '../testing/hostile-server.ts'

t.test('thousands of idle connections cost less than 200 MiB, and are cut off', async t => {
  const { beat, memory, open } = await withVictim(t)
  // How many files this process may open. The same limit holds for the server.
  const { open_files } = (process.report.getReport() as { userLimits: { open_files: { hard: number | 'unlimited' } } }).userLimits
  const wanted = size({ deep: 10_000, quick: 3_000 })
  const count = Math.min(wanted, open_files.hard === 'unlimited' ? Infinity : open_files.hard - 500)
  if (count < wanted) t.comment(`ulimit -n allows ${count} connections`)
  const before = await memory()
  const sockets: Socket[] = []
  while (sockets.length < count) sockets.push(...(await Promise.all(Array.from({ length: 250 }, open))))
  t.equal(await beat(), 201)
  const used = (await memory()) - before
  // Measured: 6 kB each. This allows three times that.
  t.ok(used < 200, `${Math.round(used)} MiB for ${sockets.length} connections`)
  for (const socket of sockets) socket.resume()
  await waitFor(async () => sockets.every(socket => socket.destroyed), { timeoutMs: 60_000 })
  t.equal(await beat(), 201)
})

t.test('slow headers and slow bodies are cut off, and heartbeats continue', async t => {
  const { beat, open, head } = await withVictim(t)
  const headers = await Promise.all(Array.from({ length: 50 }, open))
  const bodies = await Promise.all(Array.from({ length: 50 }, open))
  for (const socket of bodies) socket.write(head('/v1/heartbeat', 'Content-Length: 1000\r\n'))
  const drip = setInterval(() => {
    for (const socket of headers) if (!socket.destroyed) socket.write('x')
    for (const socket of bodies) if (!socket.destroyed) socket.write(' ')
  }, 500)
  t.teardown(() => clearInterval(drip))
  for (const socket of headers) socket.write('POST /v1/heartbeat HTTP/1.1\r\nHost: x\r\nX-Slow: ')
  t.equal(await beat(), 201)
  const answers = await Promise.all([...headers, ...bodies].map(answer))
  t.same(new Set(answers.map(text => text.slice(0, 12))), new Set(['HTTP/1.1 408']))
  t.equal(await beat(), 201)
})
