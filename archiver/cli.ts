// npm run archive -- <command>
import { runCommand } from './commands.ts'
import { currentEnv } from './config.ts'

// The reader of the output has ended, as in `… | head`.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1))

const { stdout, stderr } = process
process.exit(
  await runCommand(process.argv.slice(2), currentEnv(), {
    // process.exit() would cut off what is still in a pipe.
    write: text => new Promise((resolve, reject) => stdout.write(text, error => (error ? reject(error) : resolve()))),
    say: line => console.error(line),
    progress: stderr.isTTY ? text => stderr.write(`\r\u001b[2K${text}`) : undefined,
  }),
)
