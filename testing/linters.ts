// Debian's programs that the tests of docker/ look with.
import { hasPrograms, testPrograms } from './optional-programs.ts'

const linter = (program: string, debianPackage = program) => testPrograms(program, [debianPackage], () => hasPrograms(program))

export const shellcheck = linter('shellcheck')
export const systemdAnalyze = linter('systemd-analyze', 'systemd')
export const dockerCompose = linter('docker-compose')
