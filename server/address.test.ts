import type { IncomingMessage } from 'node:http'
import t from 'tap'
import { clientAddress } from './address.ts'

function from(remoteAddress: string | undefined, forwarded?: string) {
  return { socket: { remoteAddress }, headers: forwarded === undefined ? {} : { 'x-forwarded-for': forwarded } } as unknown as IncomingMessage
}

t.test('without a trusted proxy the socket alone counts', async t => {
  t.equal(clientAddress(from('203.0.113.9', '198.51.100.1'), false), '203.0.113.9')
  t.equal(clientAddress(from('::ffff:203.0.113.9'), false), '203.0.113.9')
  t.equal(clientAddress(from('fe80::1%eth0'), false), 'fe80::1')
  t.equal(clientAddress(from(undefined), false), null)
})

t.test('a trusted proxy\'s own hop is the last one', async t => {
  t.equal(clientAddress(from('127.0.0.1', '198.51.100.1, 203.0.113.9'), true), '203.0.113.9')
  t.equal(clientAddress(from('127.0.0.1'), true), '127.0.0.1')
  t.equal(clientAddress(from('127.0.0.1', 'unknown'), true), null)
})
