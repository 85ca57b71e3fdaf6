/* SPDX-License-Identifier: MIT
 *
 * Commands about merge, detach and handover. Their own errors, besides those of control_command.c:
 *
 *	EBUSY     there is a merge, or another detach
 *	ESRCH     there is none to be stopped or resumed
 *	EALREADY  it is stopped, or going, already
 *	ENODATA   merge, detach: the snapshot keeps no data, or a part of it was released
 *	ESTALE    the snapshot is invalid
 *	EISCONN   handover: clients are connected
 *
 * handover may also answer with the error of the file.
 */
#include "control.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static json_t *refuse(int error)
{
	switch (error) {
	case -ENOENT:
		return control_refusal(error, "no snapshot has that name");
	case -EBUSY:
		return control_refusal(error, "another one is under way");
	case -ESRCH:
		return control_refusal(error, "none is under way");
	case -EALREADY:
		return control_refusal(error, "it is so already");
	case -ENODATA:
		return control_refusal(
			error, "the snapshot keeps no data, or a part of it was released");
	case -ESTALE:
		return control_refusal(error, "the snapshot is invalid");
	case -ETIMEDOUT:
		return control_refusal(error, "older writes did not end in time; nothing is done");
	default:
		return control_refusal(error, NULL);
	}
}

/* ---- Merge ---------------------------------------------------------------------------------- */

static json_t *merge_answer(struct volume *volume, int error)
{
	json_t *answer;

	if (error != 0)
		return refuse(error);
	answer = control_merge(volume);
	json_object_set_new(answer, "ok", json_true());
	return answer;
}

json_t *control_run_merge(struct volume *volume, const struct control_words *words)
{
	char name[SNAPSHOT_NAME_MAX + 1];
	json_t *answer = control_name(words, 0, name);

	return answer != NULL ? answer : merge_answer(volume, volume_merge(volume, name));
}

json_t *control_run_merge_status(struct volume *volume, const struct control_words *words)
{
	(void)words;
	return merge_answer(volume, 0);
}

json_t *control_run_merge_stop(struct volume *volume, const struct control_words *words)
{
	(void)words;
	return merge_answer(volume, volume_merge_stop(volume));
}

json_t *control_run_merge_resume(struct volume *volume, const struct control_words *words)
{
	(void)words;
	return merge_answer(volume, volume_merge_resume(volume));
}

/* ---- Detach --------------------------------------------------------------------------------- */

json_t *control_run_detach(struct volume *volume, const struct control_words *words)
{
	char name[SNAPSHOT_NAME_MAX + 1];
	json_t *answer = control_name(words, 0, name);
	int error;

	if (answer != NULL)
		return answer;
	error = volume_detach(volume, name);
	if (error != 0)
		return refuse(error);
	return json_pack("{s:b,s:s}", "ok", 1, "name", name);
}

json_t *control_run_detach_stop(struct volume *volume, const struct control_words *words)
{
	int error = volume_detach_stop(volume);

	(void)words;
	return error != 0 ? refuse(error) : json_pack("{s:b}", "ok", 1);
}

json_t *control_run_throttle(struct volume *volume, const struct control_words *words)
{
	uint64_t bytes_per_s;
	uint64_t share_percent;
	json_t *answer = control_number(words, 0, &bytes_per_s);
	int error;

	if (answer == NULL)
		answer = control_number(words, 1, &share_percent);
	if (answer != NULL)
		return answer;
	error = share_percent <= UINT_MAX
			? volume_throttle(volume, bytes_per_s, (unsigned int)share_percent)
			: -EINVAL;
	if (error == -EINVAL)
		return control_refusal(-ERANGE, "the share is 1 to 100 percent");
	if (error != 0)
		return control_refusal(error, NULL);
	return json_pack("{s:b,s:I,s:I}", "ok", 1, "bytes_per_s", (json_int_t)bytes_per_s,
		"share_percent", (json_int_t)share_percent);
}

json_t *control_run_handover(struct volume *volume, const struct control_words *words)
{
	char *path;
	json_t *answer = control_path(words, 0, &path);
	int error;

	if (answer != NULL)
		return answer;
	error = volume_handover(volume, path);
	free(path);
	if (error == -EISCONN)
		return control_refusal(error, "clients are connected");
	if (error == -ENOTSUP)
		return control_refusal(error, "only a dm store can be handed over");
	if (error == -ENODATA)
		return control_refusal(error, "there is no snapshot to hand over");
	if (error != 0)
		return control_refusal(error, NULL);
	return json_pack("{s:b}", "ok", 1);
}
