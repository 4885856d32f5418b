// A network between nodes that can be cut: each node is reached through a port that forwards to it. When it is cut, nothing comes
// through, and nobody is told; what was on its way arrives when it is whole again, as TCP does it.
import { connect, createServer, type Socket } from 'node:net'
import type { AddressInfo } from 'node:net'

export interface Wire {
  /** host:port, which the other nodes and the server use. */
  address: string
  port: number
  cut: () => void
  mend: () => void
  end: () => Promise<void>
}

/** Forwards a new port of 127.0.0.1 to another one. */
export async function wireTo(port: number): Promise<Wire> {
  const pairs = new Set<[Socket, Socket]>()
  let isCut = false
  const server = createServer({ pauseOnConnect: true }, near => {
    const far = connect(port, '127.0.0.1')
    const pair: [Socket, Socket] = [near, far]
    pairs.add(pair)
    for (const [from, to] of [pair, [far, near]] as const) {
      from.on('data', data => {
        if (!to.write(data)) from.pause()
      })
      to.on('drain', () => {
        if (!isCut) from.resume()
      })
      const close = () => {
        pairs.delete(pair)
        to.destroy()
      }
      from.on('error', close)
      from.on('close', close)
    }
    if (isCut) far.pause()
    else near.resume()
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const own = (server.address() as AddressInfo).port
  return {
    address: `127.0.0.1:${own}`,
    port: own,
    cut() {
      isCut = true
      for (const pair of pairs) for (const socket of pair) socket.pause()
    },
    mend() {
      isCut = false
      for (const pair of pairs) for (const socket of pair) socket.resume()
    },
    async end() {
      for (const pair of pairs) for (const socket of pair) socket.destroy()
      await new Promise(resolve => server.close(resolve))
    },
  }
}
