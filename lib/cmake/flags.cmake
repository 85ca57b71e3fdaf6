# SPDX-License-Identifier: MIT
# The flags of everything in this tree, as a target: link cowsnap_flags PRIVATE. Nothing is added to
# the global flags, and nothing of it reaches a user of the installed library.

set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)

add_library(cowsnap_flags INTERFACE)
target_compile_definitions(cowsnap_flags INTERFACE _GNU_SOURCE)
target_compile_options(cowsnap_flags INTERFACE
	-Wall
	-Wextra
	-Wpedantic
	-Wshadow
	-Wstrict-prototypes
	-Wmissing-prototypes
	-Wold-style-definition
	-Wvla
	-fno-common
	# Assertions are part of the library in every build type.
	-UNDEBUG)
if(COWSNAP_WERROR)
	target_compile_options(cowsnap_flags INTERFACE -Werror)
endif()
if(COWSNAP_TSA)
	if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
		message(FATAL_ERROR "COWSNAP_TSA needs clang")
	endif()
	target_compile_options(cowsnap_flags INTERFACE -Wthread-safety -Werror=thread-safety)
endif()

set(cowsnap_instrument "")
if(COWSNAP_SANITIZE STREQUAL "address")
	# Without no-recover an undefined behaviour is printed and the test passes.
	set(cowsnap_instrument -fsanitize=address,undefined -fno-sanitize-recover=all
		-fno-omit-frame-pointer)
elseif(COWSNAP_SANITIZE STREQUAL "thread")
	set(cowsnap_instrument -fsanitize=thread -fno-omit-frame-pointer)
endif()
if(COWSNAP_COVERAGE)
	list(APPEND cowsnap_instrument --coverage)
endif()
target_compile_options(cowsnap_flags INTERFACE ${cowsnap_instrument})
target_link_options(cowsnap_flags INTERFACE ${cowsnap_instrument})
