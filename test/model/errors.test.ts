import t from 'tap';
import { errnoOf, ioError } from '../../lib/model/errors.js';

t.test('an error of the system that libuv has no name for is called by its name', async (t) => {
  const error = Object.assign(new Error('Unknown system error -122: Unknown system error -122, write'), {
    code: 'Unknown system error -122',
    errno: -122,
  });
  t.equal(errnoOf(error), 'EDQUOT');
  t.equal(ioError('WRITE', 'write vmcore', error).message, 'cannot write vmcore: disk quota exceeded');
});
