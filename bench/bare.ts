/*
 * A bare node:http server, for comparison with ours: bare.ts <port> <processes> parses|reads. `parses` reads the body, parses it and
 * answers what our server answers to a heartbeat with this `ts`. `reads` only reads the body, and answers the same bytes each time:
 * what HTTP itself costs. It says "ready" when all its processes serve.
 */
import cluster from 'node:cluster'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'

const [port, processes, kind] = process.argv.slice(2)
const ALWAYS = JSON.stringify({ result: 'stored', ts: '2026-01-01T00:00:00Z', next_interval_s: 60 })

if (process.channel) process.on('disconnect', () => process.exit())
process.on('SIGTERM', () => process.exit())

if (Number(processes) > 1 && cluster.isPrimary) {
  let ready = 0
  for (let n = 0; n < Number(processes); n++) cluster.fork().once('listening', () => ++ready === Number(processes) && sayReady())
} else {
  createServer({ keepAliveTimeout: 90_000 }, (incoming, outgoing) => {
    const chunks: Buffer[] = []
    incoming.on('data', (chunk: Buffer) => chunks.push(chunk))
    incoming.on('end', () => answer(incoming, outgoing, kind === 'parses' ? parsed(chunks) : ALWAYS))
  }).listen(Number(port), '127.0.0.1', () => {
    if (!cluster.isWorker) sayReady()
  })
}

function parsed(chunks: Buffer[]) {
  const { ts } = JSON.parse(Buffer.concat(chunks).toString()) as { ts: string }
  return JSON.stringify({ result: 'stored', ts, next_interval_s: 60 })
}

function answer(incoming: IncomingMessage, outgoing: ServerResponse, body: string) {
  outgoing.writeHead(incoming.method === 'POST' ? 201 : 200, {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(body),
  })
  outgoing.end(body)
}

function sayReady() {
  console.log('ready')
}
