import { connect, type Socket } from 'node:net'
import { performance } from 'node:perf_hooks'

/** Where what arrives is read. One is enough, because it is handled before the next read. */
const input = Buffer.allocUnsafe(256 * 1024)

/** An HTTP/1.1 connection to this machine. It is opened when it is needed, kept open, and carries one request at a time. */
export class Connection {
  /** When the request that waits for its answer was sent; Infinity if none does. */
  sentAt = Infinity
  #socket: Socket | undefined
  #text = ''
  #rest = 0

  /** @param answered gets the whole answer, or an empty text and what went wrong */
  constructor(
    readonly port: number,
    readonly answered: (answer: string, problem?: string) => void,
  ) {}

  /** Sends a request. Text is written as Latin-1. */
  send(request: Buffer | string) {
    this.sentAt = performance.now()
    const socket = this.#open()
    if (typeof request === 'string') socket.write(request, 'latin1')
    else socket.write(request)
  }

  /** Ends the connection, and with it the request that waits for its answer. */
  close(problem: string) {
    this.#socket?.destroy()
    this.#ended(problem)
  }

  #open() {
    if (this.#socket) return this.#socket
    const socket = connect({
      host: '127.0.0.1',
      port: this.port,
      noDelay: true,
      onread: {
        buffer: input,
        callback: size => {
          if (this.#socket === socket) this.#read(size)
          return true
        },
      },
    })
    let problem = 'connection closed'
    socket.on('error', error => {
      problem = (error as NodeJS.ErrnoException).code ?? error.message
    })
    socket.on('close', () => {
      if (this.#socket === socket) this.#ended(problem)
    })
    this.#socket = socket
    return socket
  }

  #read(size: number) {
    this.#text += input.toString('latin1', 0, size)
    if (this.#rest > 0) {
      this.#rest -= size
    } else {
      const end = this.#text.indexOf('\r\n\r\n')
      if (end < 0) return
      const length = /\r\ncontent-length: *(\d+)/i.exec(this.#text)?.[1]
      if (length === undefined) return this.close('an answer without content-length')
      this.#rest = end + 4 + Number(length) - this.#text.length
    }
    if (this.#rest > 0) return
    const text = this.#text
    this.#text = ''
    if (/\r\nconnection: *close/i.test(text)) {
      const socket = this.#socket
      this.#socket = undefined
      socket?.destroy()
    }
    this.#settle(text)
  }

  #ended(problem: string) {
    this.#socket = undefined
    this.#text = ''
    this.#rest = 0
    if (this.sentAt !== Infinity) this.#settle('', problem)
  }

  #settle(answer: string, problem?: string) {
    this.sentAt = Infinity
    this.answered(answer, problem)
  }
}
