// Runs Alertmanager as docker/alertmanager/ configures it, for tests: Debian's program, with stand-ins for Slack and the mail
// server.
import { execFile } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { createServer as createMailServer, type AddressInfo, type Server } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { Test } from 'tap'
import { makeDirectory } from './archiver.ts'
import { freePort } from '../local/cluster.ts'
import { plainEnv } from '../local/config.ts'
import { repository } from '../lib/repository.ts'
import { find, hasPrograms, testPrograms } from './optional-programs.ts'
import { spawnProgram } from './database.ts'

const run = promisify(execFile)
export const alertmanager = testPrograms('Alertmanager', ['prometheus-alertmanager'], () =>
  hasPrograms('prometheus-alertmanager', 'amtool'),
)

/**
 * Runs amtool.
 * @returns what it printed
 * @throws if it finds something wrong
 */
export async function amtool(...args: string[]) {
  const { stdout, stderr } = await run(find('amtool'), args, { env: plainEnv() })
  return stdout + stderr
}

/**
 * Runs docker/alertmanager/alertmanager.yml with the stand-ins in place of Slack and of the mail server, and without waiting
 * times.
 */
export async function withAlertmanager(t: Test) {
  const messages: { text: string; title: string; channel: string }[] = []
  const slack = createServer((request, response) => {
    let body = ''
    request.on('data', (chunk: Buffer) => {
      body += chunk.toString()
    })
    request.on('end', () => {
      const {
        channel,
        attachments: [attachment],
      } = JSON.parse(body) as { channel: string; attachments: [{ text: string; title: string }] }
      messages.push({ channel, ...attachment })
      response.end('ok')
    })
  })
  const mails: string[] = []
  const mail = createMailServer(socket => answerMail(socket, text => mails.push(text)))
  const [slackPort, mailPort] = await Promise.all([listen(t, slack), listen(t, mail)])

  const directory = await makeDirectory(t)
  const changes = {
    '/etc/prometheus/slack_url': join(directory, 'slack_url'),
    '/etc/prometheus/smtp_password': join(directory, 'smtp_password'),
    'smtp.example.com:587': `127.0.0.1:${mailPort}\n  smtp_require_tls: false`,
    'group_wait: 30s': 'group_wait: 0s',
  }
  let text = await readFile(join(repository, 'docker/alertmanager/alertmanager.yml'), 'utf8')
  for (const [from, to] of Object.entries(changes)) {
    if (!text.includes(from)) throw new Error(`docker/alertmanager/alertmanager.yml no longer contains ${from}`)
    text = text.replace(from, to)
  }
  await writeFile(join(directory, 'alertmanager.yml'), text)
  await writeFile(join(directory, 'slack_url'), `http://127.0.0.1:${slackPort}/services/T/B/x`)
  await writeFile(join(directory, 'smtp_password'), 'secret')
  const port = await freePort(true)
  const url = `http://127.0.0.1:${port}`
  const server = await spawnProgram(
    t,
    find('prometheus-alertmanager'),
    [
      `--config.file=${join(directory, 'alertmanager.yml')}`,
      `--storage.path=${join(directory, 'data')}`,
      `--web.listen-address=127.0.0.1:${port}`,
      '--cluster.listen-address=',
    ],
    { cwd: directory, ready: `${url}/-/ready` },
  )
  return { url, address: `127.0.0.1:${port}`, messages, mails, server }
}

async function listen(t: Test, server: Server) {
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => server.close())
  return (server.address() as AddressInfo).port
}

/** Speaks enough SMTP to receive a message. */
function answerMail(socket: NodeJS.ReadWriteStream, onMail: (text: string) => void) {
  let buffer = ''
  let isData = false
  const say = (line: string) => socket.write(`${line}\r\n`)
  say('220 stand-in')
  socket.on('error', () => {})
  socket.on('data', (chunk: Buffer) => {
    buffer += chunk.toString()
    for (;;) {
      const end = isData ? '\r\n.\r\n' : '\r\n'
      const at = buffer.indexOf(end)
      if (at < 0) return
      const text = buffer.slice(0, at)
      buffer = buffer.slice(at + end.length)
      const verb = text.slice(0, 4).toUpperCase()
      if (isData) onMail(text)
      if (!isData && verb === 'EHLO') say('250-stand-in\r\n250 AUTH PLAIN LOGIN')
      else if (!isData && verb === 'AUTH') say('235 yes')
      else if (!isData && verb === 'DATA') say('354 send the message')
      else if (!isData && verb === 'QUIT') say('221 bye')
      else say('250 ok')
      isData = !isData && verb === 'DATA'
    }
  })
}
